"""Who is said to be wrong, by which targets differ from the truth and from each other."""

from multibackend_lstm.agreement.comparison import AGREES, DISAGREES, SUSPICIOUS, Comparison
from multibackend_lstm.agreement.report import Report, TargetResult, findings_of, told_once


def report_of(**peers):
    """A report on one layer: the targets by backend, with the backends that are off as they are.

    `None` stands for a target that agrees.
    """
    report = Report(
        "case",
        "float64 on tensorflow@cpu",
        True,
        {},
        layers={"dense": {"module": "keras.layers", "class_name": "Dense", "config": {}}},
        reference_backend="tensorflow",
    )
    for backend, others in peers.items():
        off = others is not None
        names = tuple(f"{other}@cpu" for other in others or ())
        comparison = Comparison(
            "layer alone", "dense", DISAGREES if off else AGREES, 1e4 if off else 1.0,
            layer="dense", peers=names, worst=(0,), values=(1.1, 1.0), shape=(1,),
        )  # fmt: skip
        report.results.append(TargetResult(f"{backend}@cpu", comparisons=[comparison]))
    report.findings = findings_of(report)
    return report


def test_one_that_differs_is_wrong():
    report = report_of(jax=(), torch=None, tensorflow=None)
    assert report.disagreeing == ["jax@cpu"]
    assert "cannot be told" not in report.findings[0].message


def test_two_that_differ_from_each_other_too_are_both_off_and_may_both_be_right():
    """As in a bicubic resize, of which TensorFlow, the truth's backend, has weights of its own."""
    report = report_of(jax=(), torch=(), tensorflow=None)
    assert report.disagreeing == ["jax@cpu", "torch@cpu"]
    assert all("not in the same way: who is wrong cannot be told" in m for m in messages(report))
    report = report_of(jax=(), torch=(), tensorflow=None, numpy=None)  # which is with the truth
    assert report.disagreeing == ["jax@cpu", "torch@cpu"]
    assert not any("cannot be told" in message for message in messages(report))


def messages(report):
    return [finding.message for finding in report.findings]


def test_two_that_differ_alike_put_the_truth_in_doubt():
    report = report_of(jax=("torch",), torch=("jax",), tensorflow=None)
    assert report.disagreeing == ["tensorflow@cpu"]
    (finding,) = report.findings
    assert "stands alone" in finding.message


def test_the_truth_is_in_doubt_where_its_backend_is_no_target():
    report = report_of(jax=("torch",), torch=("jax",))
    assert report.disagreeing == ["tensorflow (the reference)"]


def test_two_against_two_cannot_be_told():
    report = report_of(jax=("torch",), torch=("jax",), tensorflow=None, numpy=None)
    assert report.disagreeing == ["jax@cpu", "torch@cpu"]
    assert all("who is wrong cannot be told" in f.message for f in report.findings)
    assert all("numpy" in f.message for f in report.findings)


def test_where_all_differ_alike_nobody_is_wrong():
    """As where float32 rounds a constant of the layer."""
    report = report_of(
        jax=("torch", "tensorflow"), torch=("jax", "tensorflow"), tensorflow=("jax", "torch")
    )
    assert report.agrees
    (finding,) = report.findings
    assert finding.verdict == SUSPICIOUS
    assert "agree with each other" in finding.message


def test_an_error_is_told_once_with_the_parts_that_it_ends():
    failed = {"prediction": "ValueError: no", "layers": "ValueError: no", "training": "other"}
    report = Report("case", "", True, {}, results=[TargetResult("jax@cpu", failed=failed)])
    assert messages(report) == []
    report.findings = findings_of(report)
    assert messages(report) == [
        "jax@cpu failed in prediction and layers: ValueError: no",
        "jax@cpu failed in training: other",
    ]
    assert report.could_not_run == ["jax@cpu"]


def test_what_targets_meet_alike_is_told_once():
    report = report_of(jax=None, torch=None)
    for result, line in zip(report.results, (1538, 20), strict=True):
        result.failed["prediction"] = f"ValueError: no such luck (trainer.py:{line} in step)"
        result.failed["layers"] = f"ValueError: no such luck (layer.py:{line} in call)"
        result.not_compared["training"] = "it draws random numbers"
    report.findings = findings_of(report)
    assert len(report.findings) == 4
    told = [message for _, message in told_once(report.findings)]
    assert sum("it draws random numbers" in message for message in told) == 1
    assert "jax@cpu, torch@cpu: training not compared: it draws random numbers" in told
    assert sum("failed in prediction and layers" in message for message in told) == 2
