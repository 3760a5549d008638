"""What is done to small images before training: less the mean image, contrast normalised, whitened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

PIECE = 2048  # images at a time, so that only these are ever held as float32
LEAST_SPREAD = 40.0  # of an image's pixels
LEAST_ROOT = 10.0  # of an eigenvalue of the covariance


@dataclass(eq=False)
class Preparation:
    """Turns images (n, C, H, W) into float32, in up to three steps, each left out if its value is None.

    mean : (C, H, W), subtracted.
    spread : s in the normalisation of contrast. An image z, as a vector, becomes
        (z - m) s / max(d, 40), with the mean m and standard deviation d (of n - 1) of its own numbers.
    whitening : the matrix M by which an image, as a vector, is multiplied.

    >>> Preparation(mean=np.full((1, 1, 2), 3, np.float32))(np.array([[[[1, 5]]]], np.uint8))
    array([[[[-2.,  2.]]]], dtype=float32)
    """

    mean: np.ndarray | None = None
    spread: float | None = None
    whitening: np.ndarray | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        x = images.astype(np.float32)
        if self.mean is not None:
            x -= self.mean
        z = x.reshape(len(x), prod(x.shape[1:]))
        if self.spread is not None:
            z -= z.mean(axis=1, keepdims=True)
            z *= self.spread / np.maximum(z.std(axis=1, ddof=1, keepdims=True), LEAST_SPREAD)
        if self.whitening is not None:
            z = z @ self.whitening
        return z.reshape(x.shape)


def fit_preparation(
    images: np.ndarray,
    num_train: int,
    *,
    subtract_mean: bool = True,
    contrast_normalization: bool = False,
    whiten_data: bool = False,
) -> Preparation:
    """The preparation for images (N, C, H, W) of which the first `num_train` are for training.

    As in MatConvNet's cnn_cifar: the mean image is that of the training images. The spread is the mean of
    the standard deviations of all images. With the covariance W = sum of z z' over the training images,
    divided by the number of all, and W = V diag(d) V', the whitening is V diag(e / max(sqrt(d), 10)) V',
    where e = sqrt(mean(d)) keeps the scale. (A. Coates, H. Lee, A. Y. Ng, "An analysis of single-layer
    networks in unsupervised feature learning", 2011, for the last two steps.)

    >>> images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), np.uint8)
    >>> prepare = fit_preparation(images, 40, contrast_normalization=True, whiten_data=True)
    >>> prepare(images[:7]).shape, prepare.whitening.shape
    ((7, 3, 4, 4), (48, 48))
    """
    prepare = Preparation()
    if subtract_mean:
        prepare.mean = images[:num_train].mean(axis=0, dtype=np.float64).astype(np.float32)
    if contrast_normalization:
        spreads = [prepare(piece).reshape(len(piece), -1).std(axis=1, ddof=1) for piece in _pieces(images)]
        prepare.spread = float(np.concatenate(spreads).mean(dtype=np.float64))
    if whiten_data:
        prepare.whitening = _whitening(prepare, images, num_train)
    return prepare


def prepare_all(prepare: Preparation, images: np.ndarray) -> np.ndarray:
    """All images prepared, with no more memory than the result takes."""
    prepared = np.empty(images.shape, np.float32)
    for piece, result in zip(_pieces(images), _pieces(prepared), strict=True):
        result[:] = prepare(piece)
    return prepared


def _whitening(prepare: Preparation, images: np.ndarray, num_train: int) -> np.ndarray:
    length = images[0].size
    covariance = np.zeros((length, length))
    for piece in _pieces(images[:num_train]):
        z = prepare(piece).reshape(len(piece), -1)
        covariance += z.T @ z
    values, vectors = np.linalg.eigh(covariance / len(images))
    roots = np.sqrt(np.maximum(values, 0))
    scales = np.sqrt(values.mean()) / np.maximum(roots, LEAST_ROOT)
    return ((vectors * scales) @ vectors.T).astype(np.float32)


def _pieces(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[i : i + PIECE] for i in range(0, len(images), PIECE))
