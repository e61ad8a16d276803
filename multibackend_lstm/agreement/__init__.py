"""Does one model give the same numbers on every backend?"""
