"""Data to train on: arrays, image databases, folders of images, well-known datasets."""

from .cifar import Cifar10, Cifar100
from .cifar_files import write_cifar10
from .download import fetch
from .folders import ImageFolder, Images
from .idx import read_idx, write_idx
from .imagenet import ImageNet
from .imdb import Imdb
from .imdb_write import ImdbWriter, write_imdb
from .mnist import FashionMnist, Mnist
from .reader import ImageReader
from .source import Arrays, Batch, Data, Mapped

__all__ = [
    "Arrays",
    "Batch",
    "Cifar10",
    "Cifar100",
    "Data",
    "FashionMnist",
    "ImageFolder",
    "ImageNet",
    "ImageReader",
    "Images",
    "Imdb",
    "ImdbWriter",
    "Mapped",
    "Mnist",
    "fetch",
    "read_idx",
    "write_cifar10",
    "write_idx",
    "write_imdb",
]
