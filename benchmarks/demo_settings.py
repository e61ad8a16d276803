"""Which settings should the demo train each solution with, judged on its training cases alone?

    python benchmarks/demo_settings.py [--backend jax] [--seeds 2]

Five-fold cross-validation over the 40 training cases of BasicMotions, stratified by class, with
each fold standardised by the statistics of the other four. The test cases are never read. A
solution's settings are those of the highest accuracy, on a tie of the lowest loss, over folds and
seeds; they stand in `multibackend_lstm.demo.SETTINGS`. Writes results/demo_settings.json.
"""

import argparse
import sys
from dataclasses import asdict, replace

import common

from multibackend_lstm.environment import choose_backend, set_backend

FOLDS = 5


def fold_of_case(labels, seed: int):
    """The fold, 0 to 4, of each case: every class spread evenly over the folds."""
    import numpy as np

    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        (cases,) = np.nonzero(labels == label)
        folds[cases] = rng.permutation(len(cases)) % FOLDS
    return folds


def cross_validate(solution: str, settings, seed: int) -> tuple[float, float]:
    """Accuracy and cross-entropy of the held-out cases, all folds together."""
    import numpy as np

    from multibackend_lstm import demo, load_basic_motions

    data = load_basic_motions()
    folds = fold_of_case(data.y_train, seed)
    probabilities = np.empty((len(folds), len(data.class_names)))
    for fold in range(FOLDS):
        training, held_out = folds != fold, folds == fold
        split = demo.standardise(
            data._replace(x_train=data.x_train[training], x_test=data.x_train[held_out])
        )
        model, _ = demo.fit(
            solution,
            demo.inputs_of(solution, split.x_train),
            data.y_train[training],
            classes=len(data.class_names),
            settings=settings,
            seed=seed,
        )
        probabilities[held_out] = model.predict(demo.inputs_of(solution, split.x_test), verbose=0)
    of_label = probabilities[np.arange(len(folds)), data.y_train]
    accuracy = (probabilities.argmax(axis=1) == data.y_train).mean()
    return float(accuracy), float(-np.log(np.maximum(of_label, 1e-9)).mean())


def main() -> None:
    """Cross-validate every candidate, write the results, print the winners."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    set_backend(choose_backend(arguments.backend))
    from multibackend_lstm.demo import Settings

    base = Settings(epochs=40, learning_rate=3e-3, units=64, dropout=0.2, batch_size=8)
    candidates = [
        base,
        replace(base, units=32),
        replace(base, dropout=0.5),
        replace(base, learning_rate=1e-2),
    ]
    results = []
    # pre_reshape is the same model as reshape, on the same numbers.
    for solution in ("reshape", "conv", "channelwise", "conv_lstm"):
        rows = []
        for candidate in candidates:
            settings = candidate
            if solution == "conv_lstm":  # its units are filters, at every position
                settings = replace(candidate, units=candidate.units // 4)
            scores = [cross_validate(solution, settings, seed) for seed in range(arguments.seeds)]
            accuracy = sum(score[0] for score in scores) / len(scores)
            loss = sum(score[1] for score in scores) / len(scores)
            rows.append(
                {
                    "settings": asdict(settings),
                    "accuracy": round(accuracy, 4),
                    "loss": round(loss, 4),
                }
            )
            print(f"{solution:12} {accuracy:.3f} {loss:.3f} {settings}", file=sys.stderr)
        best = max(rows, key=lambda row: (row["accuracy"], -row["loss"]))
        results.append({"solution": solution, "best": best["settings"], "candidates": rows})
        print(f"{solution}: {best}")
    common.write_results("demo_settings", __doc__.splitlines()[0], results)


if __name__ == "__main__":
    main()
