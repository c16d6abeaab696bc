#!/usr/bin/env python3
"""Writes the golden file that src/train/feature_space.rs is compared with, with scikit-learn and numpy.

    pip install scikit-learn==1.9.0 numpy
    python deploy/golden/make_feature_space.py tests/golden/feature_space.json

The embeddings are made here: three classes whose directions vary by different amounts, scaled to length 1.
"""

import json
import sys

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

CLASSES, NEIGHBOUR = 3, 5


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def case(embeddings, classes, queries, components, fixed):
    pca = PCA(n_components=components, svd_solver="full").fit(embeddings)
    reduced, asked = pca.transform(embeddings), pca.transform(queries)
    means = np.stack([reduced[classes == number].mean(axis=0) for number in range(CLASSES)])
    residuals = reduced - means[classes]
    if fixed is None:
        fitted = LedoitWolf(assume_centered=True).fit(residuals)
        covariance, shrinkage = fitted.covariance_, float(fitted.shrinkage_)
    else:
        sample = residuals.T @ residuals / len(residuals)
        target = np.trace(sample) / components * np.eye(components)
        covariance, shrinkage = (1 - fixed) * sample + fixed * target, fixed
    precision = np.linalg.inv(covariance)
    return {
        "components": components,
        "fixed": fixed,
        "shrinkage": shrinkage,
        "mahalanobis": [
            min(float(np.sqrt((query - mean) @ precision @ (query - mean))) for mean in means) for query in asked
        ],
        "neighbour": [float(np.sort(np.linalg.norm(reduced - query, axis=1))[NEIGHBOUR - 1]) for query in asked],
    }


def main():
    generator = np.random.default_rng(7)
    images, features = 40, 12
    classes = np.arange(images) % CLASSES
    embeddings = generator.normal(size=(images, features)) * np.linspace(1.5, 0.1, features)
    embeddings = unit(embeddings + classes[:, None] * np.linspace(0.5, -0.2, features))
    queries = unit(generator.normal(size=(6, features)))
    cases = [(5, None), (12, None), (8, 0.1)]
    numbers = [3.0, 1.0, 4.0, 1.5, 9.0]
    golden = {
        "embeddings": embeddings.astype(float).tolist(),
        "classes": classes.tolist(),
        "queries": queries.astype(float).tolist(),
        "neighbour": NEIGHBOUR,
        "cases": [
            case(embeddings.astype(float), classes, queries.astype(float), components, fixed)
            for components, fixed in cases
        ],
        "numbers": numbers,
        "quantiles": [[share, float(np.quantile(numbers, share))] for share in (0, 0.1, 0.5, 0.9, 0.99, 1)],
    }
    with open(sys.argv[1], "w") as file:
        json.dump(golden, file)
        file.write("\n")


main()
