"""Images in folders: lists of files, folders of classes, the layouts of ImageNet."""

import re

import numpy as np
import pytest
from PIL import Image

from dagnn.data import ImageFolder, ImageNet, ImageReader, Images
from dagnn.errors import DataError, DTypeError, FileFormatError, OptionError, ShapeError
from dagnn.io import mat

READER = ImageReader(resize=(4, 4), num_threads=1)
IDS = ["n01440764", "n01443537", "n02123045"]


def draw(path, shade=0, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).save(path)


def tree(root, **files):
    """Images `root/<folder>/<k>.png` of the shade k, as many as said for each folder."""
    for folder, count in files.items():
        for k in range(count):
            draw(root / folder.replace("__", "/") / f"{k:02}.png", shade=k)
    return root


def names(data, samples):
    return ["/".join(data.paths[i].split("/")[-2:]) for i in samples]


# ---- lists of files


def test_images_without_labels(tmp_path):
    tree(tmp_path, a=3)
    data = Images(tmp_path / "a", READER)
    assert len(data) == 3 and data.labels is None and data.train.tolist() == [0, 1, 2]
    batch = data.batch([2, 0])
    assert list(batch) == ["input"] and batch["input"][:, 0, 0, 0].tolist() == [2, 0]


def test_images_with_labels_of_any_shape(tmp_path):
    tree(tmp_path, a=3)
    paths = sorted((tmp_path / "a").iterdir())
    labels = np.arange(6.0).reshape(3, 2)
    data = Images(paths, READER, labels, [1, 2, 3], names=["x", "y"])
    batch = data.batch(np.array([2, 1]))
    assert batch["x"].shape == (2, 3, 4, 4) and batch["y"].tolist() == [[4, 5], [2, 3]]
    assert data.val.tolist() == [1] and data.test.tolist() == [2]


def test_random_numbers_reach_the_reader_and_without_them_another_reads(tmp_path):
    tree(tmp_path, a=2)
    readers = [lambda paths, rng, k=k: np.full((len(paths), 1, 1, 1), k) for k in range(2)]
    generator = np.random.default_rng(0)
    data = Images(tmp_path / "a", readers[0], val_reader=readers[1])
    assert data.batch([0], generator)["input"].item() == 0 and data.batch([0])["input"].item() == 1
    jitter = ImageReader(resize=(4, 4), brightness=9)
    data = Images(tmp_path / "a", jitter)
    first = data.batch([0, 1], np.random.default_rng(3))["input"]
    np.testing.assert_array_equal(jitter(data.paths, np.random.default_rng(3)), first)


def test_images_of_one_size_are_packed_and_of_several_refused(tmp_path):
    for k, size in enumerate([(6, 6), (6, 6), (8, 6)]):
        draw(tmp_path / f"{k}.png", size=size)
    data = Images(tmp_path, ImageReader())
    assert data.batch([0, 1])["input"].shape == (2, 3, 6, 6)
    with pytest.raises(ShapeError, match=r"resize=\(H, W\).* Received: .*\(3, 6, 6\), \(3, 6, 8\)"):
        data.batch([0, 2])


def test_wrong_lists_are_refused(tmp_path):
    draw(tmp_path / "a.png")
    with pytest.raises(ShapeError, match=r"one row per file, 1\. Received: shape \(2,\)"):
        Images(tmp_path, READER, [0, 1])
    for wrong in ("input", ("a", "b", "c"), ("a", "a")):
        with pytest.raises(OptionError, match=rf"names are two.* Received: {re.escape(repr(wrong))}"):
            Images(tmp_path, READER, names=wrong)
    with pytest.raises(DTypeError, match="labels are numbers, classes from 0. Received: <U3: 'cat'"):
        Images([tmp_path / "a.png"], READER, ["cat"])
    with pytest.raises(DataError, match=r"gone: no folder that can be read \(No such file"):
        Images(tmp_path / "gone", READER)


def test_files_there_are_not(tmp_path):
    data = Images(tree(tmp_path, a=3) / "a", READER, [0, 1, 2])
    for wrong in ([-1], [0, 3]):
        with pytest.raises(DataError, match=r"there are 3 samples, from 0\. Received: "):
            data.batch(wrong)
    for wrong in ([1.0], [True, False, True], 1):
        with pytest.raises(OptionError, match="indices are numbers of samples"):
            data.batch(wrong)
    assert data.batch([])["input"].shape == (0, 3, 4, 4) and not len(data.batch([])["label"])


# ---- folders of classes


def test_classes_are_folders(tmp_path):
    data = ImageFolder(tree(tmp_path, dog=2, cat=3, **{"a b": 1}), READER, val=0)
    assert data.classes == ["a b", "cat", "dog"]
    assert names(data, range(6)) == [
        "a b/00.png",
        "cat/00.png",
        "cat/01.png",
        "cat/02.png",
        "dog/00.png",
        "dog/01.png",
    ]
    assert data.labels.tolist() == [0, 1, 1, 1, 2, 2] and data.labels.dtype == np.int64
    assert data.train.tolist() == list(range(6))
    batch = data.batch([3, 4])
    assert batch["input"][:, 0, 0, 0].tolist() == [2, 0] and batch["label"].tolist() == [1, 2]


def test_other_files_are_left_out(tmp_path):
    for name in ("b.JPG", "c.jpeg", "d.PNG", "e.bmp", "f.tif", "g.tiff", "h.webp", "i.gif", "j.ppm", "k.pgm"):
        draw(tmp_path / "cat" / name)
    for name in ("notes.txt", "Thumbs.db", ".hidden.png", "png"):
        (tmp_path / "cat" / name).write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / "folder.png").mkdir()
    (tmp_path / "readme.md").write_bytes(b"")
    data = ImageFolder(tmp_path, READER, val=0)
    assert data.classes == ["cat"] and "".join(path.split("/")[-1][0] for path in data.paths) == "bcdefghijk"
    assert data.batch(range(10))["input"].shape == (10, 3, 4, 4)


@pytest.mark.parametrize(
    ("val", "held"), [(0, (0, 0, 0)), (0.1, (1, 1, 2)), (0.25, (0.25 * 4, 2, 5)), (0.9, (3, 9, 18))]
)
def test_a_fraction_of_each_class_is_held_out(tmp_path, val, held):
    data = ImageFolder(tree(tmp_path, a=4, b=10, c=20, d=1), READER, val=val)
    assert np.bincount(data.labels[data.val], minlength=4).tolist() == [*held, 0]
    assert sorted([*data.train, *data.val]) == list(range(35))


def test_links_that_lead_nowhere_are_left_out(tmp_path):
    tree(tmp_path, cat=2)
    for name in ("loop.png", "cat/loop.png"):
        (tmp_path / name).symlink_to("loop.png")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "cat" / "link.png").symlink_to("00.png")
    (tmp_path / "dog").symlink_to("cat")
    data = ImageFolder(tmp_path, READER)
    assert data.classes == ["cat", "dog"] and len(data) == 6
    assert names(data, range(3)) == ["cat/00.png", "cat/01.png", "cat/link.png"]


def test_what_is_held_out_depends_on_the_seed_and_the_class(tmp_path):
    root = tree(tmp_path, a=20, b=20)
    first = ImageFolder(root, READER, val=0.5)
    again = ImageFolder(root, READER, val=0.5)
    assert first.val.tolist() == again.val.tolist()
    assert first.val.tolist() != ImageFolder(root, READER, val=0.5, seed=1).val.tolist()
    alone = ImageFolder(tree(root, aa=5), READER, val=0.5, classes=["b"])
    assert names(alone, alone.val) == [name for name in names(first, first.val) if name[0] == "b"]
    of_a, of_b = ([n[2:] for n in names(first, first.val) if n[0] == c] for c in "ab")
    assert of_a != of_b


def test_sets_are_folders(tmp_path):
    tree(tmp_path, train__cat=2, train__dog=3, val__dog=1, test__cat=2, notes=1)
    (tmp_path / "val" / "cat").mkdir()
    data = ImageFolder(tmp_path, READER)
    assert data.classes == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert data.sets.tolist() == [1, 1, 1, 1, 1, 2, 3, 3]


def test_test_images_may_have_no_class_and_val_may_be_missing(tmp_path):
    tree(tmp_path, train__cat=4, train__dog=4, test=2)
    data = ImageFolder(tmp_path, READER, val=0.25)
    assert data.labels[data.test].tolist() == [-1, -1]
    assert data.labels[data.val].tolist() == [0, 1] and len(data.train) == 6


def test_a_class_may_be_called_train(tmp_path):
    assert ImageFolder(tree(tmp_path, car=1, train=1), READER).classes == ["car", "train"]


def test_classes_can_be_chosen_and_ordered(tmp_path):
    tree(tmp_path, train__a=1, train__b=2, train__c=3, val__a=1, val__c=1)
    data = ImageFolder(tmp_path, READER, classes=["c", "a"])
    assert data.classes == ["c", "a"] and data.labels.tolist() == [0, 0, 0, 1, 0, 1]
    with pytest.raises(DataError, match=r"no folders d, e\. There are: a, b, c"):
        ImageFolder(tmp_path, READER, classes=["a", "d", "e"])
    for wrong in (["a", "a"], []):
        with pytest.raises(OptionError, match="different names, one at least"):
            ImageFolder(tmp_path, READER, classes=wrong)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="gone: no folder that can be read"):
        ImageFolder(tmp_path / "gone", READER)
    with pytest.raises(DataError, match="no folders here, one for each class; it has no images either"):
        ImageFolder(tmp_path, READER)
    draw(tmp_path / "a.png")
    with pytest.raises(DataError, match="its images have no classes: use Images"):
        ImageFolder(tmp_path, READER)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat: no images here, .*Received: no files"):
        ImageFolder(tmp_path, READER)
    (tmp_path / "cat" / "a.txt").touch()
    with pytest.raises(DataError, match=r"cat: no images here, files that end in \.jpg, .*Received: a\.txt"):
        ImageFolder(tmp_path, READER)


def test_a_set_without_images_is_refused(tmp_path):
    tree(tmp_path, train__cat=3, train__dog=3, val__dog=1)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"test: no images of the classes cat, dog in its folders cat"):
        ImageFolder(tmp_path, READER)
    draw(tmp_path / "test" / "cat" / "a.png")
    with pytest.raises(DataError, match=r"val: no images of the classes cat in its folders dog"):
        ImageFolder(tmp_path, READER, classes=["cat"])


def test_classes_without_training_images_are_refused(tmp_path):
    tree(tmp_path, train__cat=1, val__cat=1, val__cow=1)
    with pytest.raises(DataError, match=r"val: no training images for cow\. There are some for cat"):
        ImageFolder(tmp_path, READER)


@pytest.mark.parametrize("options", [{"val": 1}, {"val": -0.1}, {"seed": -1}, {"val": "some"}])
def test_wrong_options_are_refused(tmp_path, options):
    with pytest.raises(OptionError):
        ImageFolder(tree(tmp_path, a=2), READER, **options)


# ---- ImageNet


def imagenet(root, home=".", train=IDS, flat=3):
    """Two training images of each class, and validation images that lie flat."""
    for wnid in train:
        tree(root / home, **{f"train/{wnid}": 2})
    for k in range(flat):
        draw(root / home / "val" / f"ILSVRC2012_val_{k + 1:08}.JPEG", shade=k)
    return root


def devkit(folder, ids, numbers):
    folder.mkdir(parents=True)
    records = [
        {"ILSVRC2012_ID": float(k), "WNID": wnid, "words": f"thing {k}"} for k, wnid in enumerate(ids, 1)
    ]
    mat.write(folder / "meta.mat", {"synsets": mat.StructArray((len(ids), 1), tuple(records[0]), records)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in numbers))


@pytest.mark.parametrize("home", [".", "images", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"])
def test_validation_images_in_class_folders(tmp_path, home):
    imagenet(tmp_path, home, flat=0)
    tree(tmp_path / home, **{f"val/{IDS[1]}": 2, f"val/{IDS[0]}": 1, "test": 1})
    data = ImageNet(tmp_path, READER)
    assert data.classes == data.descriptions == IDS
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 1, -1]
    assert data.sets.tolist() == [1] * 6 + [2] * 3 + [3]
    assert data.batch([7, 9])["label"].tolist() == [1, -1]


def test_validation_classes_of_caffe(tmp_path):
    imagenet(tmp_path)
    lines = [f"ILSVRC2012_val_{k + 1:08}.JPEG {label}\n" for k, label in enumerate([2, 0, 1])]
    (tmp_path / "val.txt").write_text("".join(lines[::-1]))
    data = ImageNet(tmp_path, READER)
    assert data.labels[data.val].tolist() == [2, 0, 1]
    assert names(data, data.val) == [f"val/ILSVRC2012_val_{k:08}.JPEG" for k in (1, 2, 3)]


def test_validation_classes_of_kaggle(tmp_path):
    imagenet(tmp_path, "ILSVRC/Data/CLS-LOC")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\r\n"
        "ILSVRC2012_val_00000002,n01443537 111 108 431 202 n01443537 1 2 3 4 \r\n"
        "ILSVRC2012_val_00000001,n02123045 85 1 499 272 \r\n"
        "ILSVRC2012_val_00000003,n01440764 85 1 499 272 \r\n"
    )
    words = ["tench, Tinca tinca", "goldfish", "tabby"]
    lines = [f"{wnid} {text}" for wnid, text in zip(IDS, words, strict=True)]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    data = ImageNet(tmp_path, READER)
    assert data.labels[data.val].tolist() == [2, 1, 0]
    assert data.descriptions == words


def test_validation_classes_of_the_devkit(tmp_path):
    """Its numbers count the classes in an order of their own, from 1."""
    imagenet(tmp_path, "images")
    devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data", [IDS[2], IDS[0], IDS[1]], [1, 3, 2])
    data = ImageNet(tmp_path, READER)
    assert data.labels[data.val].tolist() == [2, 1, 0]
    assert data.descriptions == ["thing 2", "thing 3", "thing 1"]


def test_some_classes_of_all(tmp_path):
    """val.txt counts all classes; images of those without training images are left out."""
    imagenet(tmp_path, train=IDS[1:])
    (tmp_path / "synset_words.txt").write_text("".join(f"{wnid} word of {wnid}\n" for wnid in IDS))
    (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_{k + 1:08}.JPEG {k}\n" for k in range(3)))
    data = ImageNet(tmp_path, READER)
    assert data.classes == IDS[1:] and data.labels[data.val].tolist() == [0, 1]
    assert names(data, data.val) == ["val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000003.JPEG"]


def test_validation_images_alone(tmp_path):
    imagenet(tmp_path, train=[])
    (tmp_path / "synset_words.txt").write_text("".join(f"{wnid} word\n" for wnid in IDS))
    (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_{k + 1:08}.JPEG {k}\n" for k in range(3)))
    data = ImageNet(tmp_path, READER)
    assert data.classes == IDS and data.val.tolist() == [0, 1, 2] and data.labels.tolist() == [0, 1, 2]


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(DataError, match="no folder train or val here, nor in images, Data/CLS-LOC"):
        ImageNet(tmp_path, READER)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: no folders here named like n01440764"):
        ImageNet(tmp_path, READER)
    (tmp_path / "train" / IDS[0]).mkdir()
    with pytest.raises(DataError, match="n01440764: no images here"):
        ImageNet(tmp_path, READER)
    imagenet(tmp_path)
    with pytest.raises(DataError, match=r"val: the classes of these 3 images .* val\.txt or LOC_val"):
        ImageNet(tmp_path, READER)
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 1\n")
    with pytest.raises(DataError, match=r"val\.txt: no line for 2 images, such as .*_00000002\.JPEG"):
        ImageNet(tmp_path, READER)


def test_classes_must_be_known(tmp_path):
    imagenet(tmp_path, train=[])
    with pytest.raises(DataError, match=r"no classes are known\. Put synset_words\.txt there"):
        ImageNet(tmp_path, READER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.JPEG 1\nb.JPEG\n", r"line 2: expected an image and its class\. Received: 'b\.JPEG'"),
        ("a.JPEG 3\n", r"class 3, counted from 0, is not among the 3 classes known"),
        ("a.JPEG 99999999999999999999\n" * 2, "line 2"),
        (b"a.JPEG 1\n\xff\xfe", "UTF-8"),
    ],
)
def test_damaged_lists_are_refused(tmp_path, text, message):
    imagenet(tmp_path)
    (tmp_path / "val.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileFormatError, match=rf"val\.txt.*{message}"):
        ImageNet(tmp_path, READER)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 2], "expected 3 lines with a number, one for each image, found 2"),
        ([1, 2, 4], "class 3"),
        ([1, 0, 2], "class -1"),
        ([1, 2, "x"], "a number"),
        ([1, 2, "9" * 5000], "a number"),
    ],
)
def test_a_damaged_devkit_is_refused(tmp_path, numbers, message):
    imagenet(tmp_path)
    devkit(tmp_path / "devkit" / "data", IDS, numbers)
    with pytest.raises(FileFormatError, match=rf"ground_truth\.txt: .*{message}"):
        ImageNet(tmp_path, READER)


@pytest.mark.parametrize(
    "synsets", [None, "text", mat.StructArray((2, 1), ("WNID",), [{"WNID": "n1"}, {"WNID": "n2"}])]
)
def test_a_meta_file_of_something_else_is_refused(tmp_path, synsets):
    imagenet(tmp_path)
    devkit(tmp_path / "devkit" / "data", IDS, [1, 2, 3])
    mat.write(tmp_path / "devkit" / "data" / "meta.mat", {"synsets": synsets} if synsets else {"x": 1.0})
    with pytest.raises(FileFormatError, match=r"meta\.mat: expected a struct array synsets with WNID"):
        ImageNet(tmp_path, READER)
