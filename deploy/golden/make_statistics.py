#!/usr/bin/env python3
"""Writes the golden file that src/train/statistics is compared with, by scikit-learn, SciPy and the published formulae.

    pip install scikit-learn==1.7.2 scipy==1.17.1 numpy==2.4.6
    python deploy/golden/make_statistics.py tests/golden/statistics.json

The data are made here: scores of two raters with and without ties, truths, patients with several images. Resamples come
from the generator of src/nn/seeded.rs, so that the bootstrap is the same one.
"""

import json
import sys

import numpy as np
import scipy
import sklearn
from scipy import optimize, stats
from sklearn import metrics
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import KernelCenterer

RESAMPLES = 200
SEED = 7


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def mix(state):
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(seed, name, n_elements):
    with np.errstate(over="ignore"):
        stream = mix(np.array([seed ^ fnv1a(name)], dtype=np.uint64))
        counters = np.arange(1, n_elements + 1, dtype=np.uint64)
        bits = mix(stream + counters * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return bits.astype(np.float64) / 16777216.0


def structural_components(scores, truths):
    """DeLong's components by their definition, pair by pair."""
    positives, negatives = scores[truths], scores[~truths]
    psi = (positives[:, None] > negatives[None, :]) + 0.5 * (positives[:, None] == negatives[None, :])
    return psi.mean(), psi.mean(axis=1), psi.mean(axis=0)


def delong(first, second, truths):
    one, other = structural_components(first, truths), structural_components(second, truths)
    covariance = np.cov(one[1], other[1]) / truths.sum() + np.cov(one[2], other[2]) / (~truths).sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (one[0] - other[0]) / np.sqrt(variance)
    return covariance[0, 0], z, 2 * stats.norm.sf(abs(z))


def expected_calibration_error(scores, truths, bins=15):
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for idx, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        inside = (scores > low) & (scores <= high) if idx else (scores >= low) & (scores <= high)
        if inside.any():
            total += inside.sum() * abs(scores[inside].mean() - truths[inside].mean())
    return total / len(scores)


def bootstrap(scores, truths, patients):
    names = list(dict.fromkeys(patients))
    images = [[idx for idx, patient in enumerate(patients) if patient == name] for name in names]
    found = []
    for resample in range(RESAMPLES):
        draws = (uniform(SEED, f"bootstrap/{resample}", len(names)) * len(names)).astype(int)
        chosen = [idx for draw in draws for idx in images[draw]]
        if len(set(truths[chosen])) == 2:
            found.append(metrics.roc_auc_score(truths[chosen], scores[chosen]))
    return {"interval": np.percentile(found, [2.5, 97.5]).tolist(), "resamples": len(found)}


def platt(logits, truths):
    positive, negative = truths.sum(), (~truths).sum()
    targets = np.where(truths, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def gradient(parameters):
        p = 1 / (1 + np.exp(-(parameters[0] * logits + parameters[1])))
        return [((p - targets) * logits).sum(), (p - targets).sum()]

    return optimize.root(gradient, [1.0, 0.0], tol=1e-14).x.tolist()


def temperature(outputs, classes):
    logits = np.log(outputs)

    def slope(inverse):
        weights = np.exp(logits * inverse - (logits * inverse).max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return (logits[np.arange(len(classes)), classes] - (weights * logits).sum(axis=1)).sum()

    return 1 / optimize.brentq(slope, 0.01, 100, xtol=1e-15, rtol=1e-14)


def case(generator, n, ties):
    truths = generator.random(n) < 0.4
    logits = generator.normal(0, 1, n) + 1.3 * truths
    other = 0.6 * logits + generator.normal(0, 1, n)
    scores, second = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-other))
    if ties:
        scores, second = np.round(scores, 1).clip(0.1, 0.9), np.round(second, 1).clip(0.1, 0.9)
    patients = [f"p{idx}" for idx in generator.integers(0, n // 2, n)]
    threshold = 0.5
    decided = scores >= threshold
    matrix = metrics.confusion_matrix(truths, decided)
    false_positive_rate, true_positive_rate, _ = metrics.roc_curve(truths, scores, drop_intermediate=False)
    precision, recall, _ = metrics.precision_recall_curve(truths, scores)
    variance, z, p_value = delong(scores, second, truths)
    outputs = np.stack([1 - scores, 0.7 * scores, 0.3 * scores], axis=1)
    classes = np.where(truths, np.where(generator.random(n) < 0.7, 1, 2), 0)
    return {
        "scores": scores.tolist(),
        "second": second.tolist(),
        "truths": truths.tolist(),
        "patients": patients,
        "confusion": matrix.ravel().tolist(),
        "accuracy": metrics.accuracy_score(truths, decided),
        "sensitivity": metrics.recall_score(truths, decided),
        "specificity": metrics.recall_score(truths, decided, pos_label=False),
        "ppv": metrics.precision_score(truths, decided),
        "npv": metrics.precision_score(truths, decided, pos_label=False),
        "roc_area": metrics.roc_auc_score(truths, scores),
        "false_positive_rate": false_positive_rate.tolist(),
        "true_positive_rate": true_positive_rate.tolist(),
        "average_precision": metrics.average_precision_score(truths, scores),
        "precision_recall_area": metrics.auc(recall, precision),
        "delong_variance": variance,
        "delong_z": z,
        "delong_p_value": p_value,
        "bootstrap": bootstrap(scores, truths, patients),
        "brier": metrics.brier_score_loss(truths, scores),
        "log_loss": metrics.log_loss(classes, outputs, labels=[0, 1, 2]),
        "expected_calibration_error": expected_calibration_error(scores, truths),
        "outputs": outputs.tolist(),
        "classes": classes.tolist(),
        "temperature": temperature(outputs, classes),
        "platt": platt(np.log(scores / (1 - scores)), truths),
    }


def wilson():
    for count, n in [(0, 1), (3, 7), (10, 10), (316, 350), (81, 263), (999, 1000)]:
        interval = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
        yield {"count": count, "n": n, "interval": [interval.low, interval.high]}


def cross_tables():
    for table in [[[10, 20, 30], [6, 9, 17]], [[90, 0], [8, 200], [2, 200]], [[5, 5], [5, 5]], [[12, 3], [4, 11]]]:
        table = np.array(table)
        n, (rows, columns) = table.sum(), table.shape
        chi_squared = stats.chi2_contingency(table, correction=False).statistic
        phi = max(0, chi_squared / n - (rows - 1) * (columns - 1) / (n - 1))
        smaller = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
        yield {"counts": table.tolist(), "v": float(np.sqrt(phi / smaller))}


def ridge(generator):
    n, length = 40, 60
    truths = np.arange(n) % 3 == 0
    vectors = generator.normal(0, 1, (n, length)).astype(np.float32)
    vectors[:, 5] += 2 * truths
    folds = np.arange(n) // 10
    scores = np.zeros(n)
    for fold in range(4):
        fitted, held_out = folds != fold, folds == fold
        kernel = vectors.astype(np.float64) @ vectors.astype(np.float64).T
        centre = KernelCenterer().fit(kernel[np.ix_(fitted, fitted)])
        inner = centre.transform(kernel[np.ix_(fitted, fitted)])
        count, positive = fitted.sum(), truths[fitted].sum()
        wanted = np.where(truths[fitted], count / (2 * positive), -count / (2 * (count - positive)))
        model = KernelRidge(alpha=0.1 * np.trace(inner) / count, kernel="precomputed").fit(inner, wanted)
        scores[held_out] = model.predict(centre.transform(kernel[np.ix_(held_out, fitted)]))
    return {
        "vectors": vectors.astype(float).tolist(),
        "truths": truths.tolist(),
        "folds": folds.tolist(),
        "scores": scores.tolist(),
    }


def dice(generator):
    for share in (0.1, 0.5):
        truth = generator.random(400) < share
        found = truth ^ (generator.random(400) < 0.1)
        yield {"found": found.tolist(), "truth": truth.tolist(), "dice": metrics.f1_score(truth, found)}


def main():
    generator = np.random.default_rng(20261129)
    golden = {
        "made_with": f"scikit-learn {sklearn.__version__}, SciPy {scipy.__version__}, NumPy {np.__version__}",
        "seed": SEED,
        "resamples": RESAMPLES,
        "cases": [case(generator, n, ties) for n, ties in [(60, False), (90, True)]],
        "wilson": list(wilson()),
        "cross_tables": list(cross_tables()),
        "ridge": ridge(generator),
        "dice": list(dice(generator)),
    }
    with open(sys.argv[1], "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")
    print(f"{golden['made_with']}: {len(golden['cases'])} cases")


main()
