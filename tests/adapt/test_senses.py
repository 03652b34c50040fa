"""Folders of images and of sounds: tiny random models of each kind, trained on what can be told apart."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight import adapt, exchange
from commonweight.adapt import settings
from commonweight.adapt.rows import read
from commonweight.adapt.sensed import Sensed
from commonweight.adapt.tasks import sensing
from commonweight.compare.run import opened as compared
from commonweight.lifelong import memory

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
np = pytest.importorskip("numpy")
pytestmark = pytest.mark.filterwarnings("ignore")
RATE = 2000


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("senses")
    images(at / "images"), sounds(at / "sounds")
    torch.manual_seed(0)
    small: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    tf.ViTModel(tf.ViTConfig(image_size=16, patch_size=8, **small)).save_pretrained(at / "vit")
    size = {"height": 16, "width": 16}
    tf.ViTImageProcessorPil(size=size).save_pretrained(at / "vit")
    tf.ResNetModel(
        tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).save_pretrained(at / "resnet")
    tf.ViTImageProcessorPil(size=size).save_pretrained(at / "resnet")
    conv: Any = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}  # fmt: skip
    tf.Wav2Vec2Model(tf.Wav2Vec2Config(**small, **conv)).save_pretrained(at / "wav2vec2")
    tf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(at / "wav2vec2")
    whisper: Any = {f"{side}_{n}": v for side in ("encoder", "decoder") for n, v in
                    (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    config = tf.WhisperConfig(
        vocab_size=60, d_model=32, num_mel_bins=8, max_source_positions=50, max_target_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, init_std=0.3, **whisper,
    )  # fmt: skip
    tf.WhisperModel(config).save_pretrained(at / "whisper")
    tf.WhisperFeatureExtractor(
        feature_size=8, sampling_rate=RATE, hop_length=20, n_fft=64, chunk_length=1
    ).save_pretrained(at / "whisper")
    tf.ASTModel(
        tf.ASTConfig(
            max_length=64,
            num_mel_bins=16,
            patch_size=8,
            frequency_stride=8,
            time_stride=8,
            initializer_range=0.1,
            **small,
        )
    ).save_pretrained(at / "ast")
    tf.ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=64).save_pretrained(at / "ast")
    return at


def images(at: Path, n: int = 12) -> None:
    """Red ones and blue ones, of several sizes and two formats."""
    g = np.random.default_rng(0)
    for split, count in (("train", n), ("test", 6)):
        for c, name in enumerate(("blue", "red")):
            (at / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = g.integers(0, 90, (12 + i % 5, 20, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * c] += 120
                Image.fromarray(pixels).save(at / split / name / f"{i}.{'png' if i % 2 else 'jpg'}")


def sounds(at: Path, n: int = 12) -> None:
    """High tones and low ones, of several lengths, rates and counts of channels."""
    g = np.random.default_rng(0)
    for name, pitch in (("high", 700), ("low", 90)):
        (at / name).mkdir(parents=True)
        for i in range(n):
            rate = RATE if i % 2 else 8000
            t = np.arange(int(rate * (0.3 + 0.02 * i))) / rate
            wave = (np.sin(2 * math.pi * pitch * t + i) + 0.1 * g.standard_normal(len(t))).astype(np.float32) / 2
            soundfile.write(at / name / f"{i}.wav", np.stack([wave, wave], 1) if i % 3 == 0 else wave, rate)


HOW: dict[str, Any] = {"epochs": 10, "batch_size": 12, "lr": 1e-2}


def learned(at: Path, model: str, rows: str, method: str = "lora", **more: Any) -> tuple[cw.Host, Any]:
    host = adapt.open_host(at / model, "classify", dtype="float32")
    found = adapt.adapt(host, "t", read(str(at / rows)), method=method, seed=1, **{**HOW, **more})
    return host, found


@pytest.mark.parametrize("model, method", [("vit", "lora"), ("vit", "mos"), ("resnet", "bitfit")])
def test_images_are_learned_and_measured(here, model, method, tmp_path):
    host, found = learned(here, model, "images", method)
    assert found.tenant.labels == ("blue", "red") and found.curve[-1]["loss"] < 0.6 * found.curve[0]["loss"]
    test = read(str(here / "images"), split="test")
    assert len(test) == 12 and adapt.evaluate(host, "t", test)["accuracy"] >= 0.9
    other = adapt.open_host(here / model, "classify", dtype="float32")
    other.load("again", host.save("t", tmp_path / "t.safetensors"))
    assert adapt.evaluate(other, "again", test) == adapt.evaluate(host, "t", test)


@pytest.mark.parametrize("model", ["wav2vec2", "whisper", "ast"])
def test_sounds_are_learned(here, model):
    _, found = learned(here, model, "sounds", dev_rows=0.25, epochs=24 if model == "ast" else 10, patience=24)
    assert found.metrics["accuracy"] >= 0.8 and found.metrics["n"] == 6
    assert "s of sound" in found.note


def test_a_sound_in_a_batch_is_as_alone(here):
    """Padding of a batch is no part of its mean; rows of two tenants stay apart."""
    host, _ = learned(here, "wav2vec2", "sounds", epochs=1)
    host.add("u", "ia3", labels=["high", "low"])
    with torch.no_grad():
        for p in host["u"].parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    task = adapt.data.make_task(host, "classify", ["high", "low"])
    rows = read(str(here / "sounds"))
    examples = task.examples([rows[0], rows[5], rows[20]])

    def logits(batch, route):
        batch.pop("labels")
        with torch.no_grad(), host.route(route):
            return host.model(**batch).logits

    together = logits(task.collate(examples), ["t", "u", "t"])
    for i, name in enumerate(("t", "u", "t")):
        torch.testing.assert_close(together[i : i + 1], logits(task.collate([examples[i]]), name), rtol=1e-4, atol=1e-5)


def test_two_tenants_of_images_train_together(here):
    host = adapt.open_host(here / "vit", "classify", dtype="float32")
    rows = read(str(here / "images"))
    turned = [{**r, "label": "cold" if r["label"] == "blue" else "warm"} for r in rows]
    found = adapt.adapt_together(host, {"a": adapt.Data(rows=rows), "b": adapt.Data(rows=turned)}, method="lora", **HOW)
    assert {n: r.tenant.labels for n, r in found.items()} == {"a": ("blue", "red"), "b": ("cold", "warm")}
    assert min(adapt.evaluate(host, n, r)["accuracy"] for n, r in (("a", rows), ("b", turned))) >= 0.9


def test_every_tenant_reads_its_own_files(here, tmp_path, monkeypatch):
    """A run collates with the task of its first tenant."""
    host = adapt.open_host(here / "vit", "classify", dtype="float32")
    shutil.copytree(here / "images" / "test", tmp_path / "other")
    mine, other = read(str(here / "images")), read(str(tmp_path / "other"))
    opened: list[str] = []
    real = sensing.image
    monkeypatch.setattr(sensing, "image", lambda value: (opened.append(str(value)), real(value))[1])
    data = {"a": adapt.Data(rows=mine), "b": adapt.Data(rows=other)}
    adapt.adapt_together(host, data, method="lora", epochs=1, batch_size=12)
    assert {*opened} == {r["image"] for r in (*mine, *other)}


def test_a_memory_keeps_files_by_their_paths(here, monkeypatch):
    host = adapt.open_host(here / "vit", "classify", dtype="float32")
    task, again = (adapt.data.make_task(host, "classify", ["blue", "red"]) for _ in range(2))
    rows = read(str(here / "images"), split="test")
    monkeypatch.chdir(here)
    near = [{**r, "image": Path(r["image"]).relative_to(here)} for r in rows]
    kept = json.loads(json.dumps(memory.kept({}, task.examples(near), 3, 0, "t")))["t"]
    monkeypatch.chdir(here.parent)
    whole = {e["held"]: e for e in task.examples(rows)}
    assert torch.equal(
        again.collate(kept)["pixel_values"], task.collate([whole[e["held"]] for e in kept])["pixel_values"]
    )
    bare = task.examples([{"image": Path(r["image"]).read_bytes(), "label": r["label"]} for r in rows])
    with pytest.raises(cw.CommonweightError, match="keeps rows of images or sounds by the paths of their files"):
        memory.kept({}, bare, 3, 0, "t")
    assert settings.digest(bare) == settings.digest(bare[:]) != settings.digest(bare[::-1])


def test_from_the_command_line(here, tmp_path, capsys):
    from tests.cli.test_cli import call

    args = (
        "adapt",
        here / "vit",
        here / "images",
        "--method",
        "lora",
        "--dtype",
        "float32",
        "--epochs",
        "4",
        "--lr",
        "0.01",
    )
    code, out, err = call(capsys, *args, "--eval", here / "images", "--out", tmp_path / "a.safetensors")
    assert code == 0, err
    assert "24 rows; image is 'image', label is 'label'" in err and "blue/0.jpg -> ⟦blue⟧" in err
    assert "accuracy 1.0" in out and "tokens/s" not in out + err
    assert json.loads((tmp_path / "a.json").read_text())["metrics"]["eval"]["n"] == 12


ERRORS = {
    "torn": ("vit", "images", r"row 4: .*11\.png: cannot be read as an image"),
    "no sound": ("wav2vec2", "sounds", r"row 2: .*/1\.wav: cannot be read as a sound"),
    "one class": ("vit", "images", r"only the label 'red' occurs; wanted at least two"),
    "no class": ("vit", "images", r"stray\.png: stands in no folder of a class; wanted images/CLASS/stray\.png"),
    "both": ("vit", "images", r"audio beside image in one folder; train them apart"),
    "no processor": ("bare", "images", r"no image processor can be read at .*preprocessor_config\.json"),
    "sounds to a ViT": ("vit", "sounds", r"no image column among audio, label; .*'audio' is of another sense"),
    "embed": ("vit", "images", r"does not suit the task embed, whose rows are texts \(it reads pixel_values\)"),
    "length": ("vit", "images", r"max_length=8: images have no length"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_is_wrong_is_told(here, what, tmp_path):
    model, rows, says = ERRORS[what]
    home = tmp_path / rows
    shutil.copytree(here / rows / "train" if rows == "images" else here / rows, home)
    if what == "torn":
        (home / "blue" / "11.png").write_bytes((home / "blue" / "11.png").read_bytes()[:60])
    elif what == "no sound":
        (home / "high" / "1.wav").write_bytes(b"RIFF no wave")
    elif what == "one class":
        shutil.rmtree(home / "blue")
    elif what == "no class":
        shutil.copy(home / "red" / "1.png", home / "stray.png")
    elif what == "both":
        shutil.copy(here / "sounds" / "low" / "1.wav", home / "red")
    elif what == "no processor":
        shutil.copytree(here / "vit", tmp_path / model)
        (tmp_path / model / "preprocessor_config.json").unlink()
    at = tmp_path / model if model == "bare" else here / model
    with pytest.raises(cw.CommonweightError, match=says):
        host = adapt.open_host(at, "embed" if what == "embed" else "classify", dtype="float32")
        adapt.adapt(host, "t", read(str(home)), epochs=1, **({"max_length": 8} if what == "length" else {}))


def test_splits_and_what_is_left_out(here, tmp_path):
    shutil.copytree(here / "images", tmp_path / "i")
    (tmp_path / "i" / "test").rename(tmp_path / "i" / "val")
    (tmp_path / "i" / "train" / "red" / "notes.txt").write_text("-")
    said: list[str] = []
    assert len(read(str(tmp_path / "i"), say=said.append)) == 24 and "1 file of other kinds" in said[0]
    assert len(read(str(tmp_path / "i"), split="validation")) == len(read(f"{tmp_path / 'i'}:val")) == 12
    with pytest.raises(cw.CommonweightError, match="unknown split 'test'"):
        read(str(tmp_path / "i"), split="test")
    with pytest.raises(cw.CommonweightError, match="one of images or sounds with a folder for each class"):
        (tmp_path / "empty").mkdir()
        read(str(tmp_path / "empty"))


WIDE: dict[str, tuple[dict[str, Any], int]] = {
    "MobileNetV1": ({"image_size": 32, "depth_multiplier": 0.25}, 256),
    "FocalNet": ({"image_size": 32, "embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1],
                  "focal_windows": [3, 3]}, 16),
    "MobileViT": ({"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
                   "num_attention_heads": 4}, 64),
    "EfficientNet": ({"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}, 320),
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_features_are_as_wide_as_the_encoder_makes_them(name):
    given, d = WIDE[name]
    size = given.get("image_size", 40)
    encoder = getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**given))
    host = cw.Host(Sensed(encoder).eval())
    host.add("a", "bitfit", labels=["x", "y", "z"])
    image = torch.randn(2, 3, size, size)
    with torch.no_grad(), host.route("a"):
        assert host.model(pixel_values=image).logits.shape == (2, 3)
        assert host.model.features(pixel_values=image).shape == (2, d)


def test_an_encoder_without_features_is_named():
    encoder = tf.VideoMAEModel(
        tf.VideoMAEConfig(image_size=16, patch_size=8, num_frames=2, hidden_size=16, num_hidden_layers=1,
                          num_attention_heads=2, intermediate_size=16, name_or_path="films")
    )  # fmt: skip
    with pytest.raises(cw.CommonweightError, match=r"'films' \(VideoMAEModel\) has no features for a classifier"):
        Sensed(encoder)


@pytest.mark.parametrize("model, rows", [("vit", "images/train"), ("wav2vec2", "sounds")])
def test_commands_of_texts_alone_say_so(here, model, rows):
    says = rf"{model}' reads {rows.split('/')[0]}, and {{}} takes rows of texts alone; tune it with commonweight adapt"
    with pytest.raises(cw.CommonweightError, match=says.format("exchange")):
        exchange.simulate(here / model, read(str(here / rows)), clients=2, rounds=1)
    with pytest.raises(cw.CommonweightError, match=says.format("compare")):
        compared(str(here / model), "classify", "float32")


def test_a_split_that_somebody_named_is_there(here, tmp_path):
    flat, parts = here / "images" / "train", tmp_path / "parts"
    assert len(read(str(flat), split="test")) == 24
    with pytest.raises(cw.CommonweightError, match="unknown split 'test'; known: none"):
        read(f"{flat}:test")
    for name in ("test", "val"):
        shutil.copytree(here / "images" / "test", parts / name)
    assert {r["label"] for r in read(f"{parts}:validation")} == {"blue", "red"}
    with pytest.raises(cw.CommonweightError, match="unknown split 'train'; known: test, val"):
        read(str(parts))


def test_what_is_hidden_is_no_row(here, tmp_path):
    flat = tmp_path / "i"
    shutil.copytree(here / "images" / "test", flat)
    whole = read(str(flat))
    (flat / ".ipynb_checkpoints").mkdir(), (flat / "red" / "folder.png").mkdir()
    for name in (".ipynb_checkpoints/0.png", "red/._1.png"):
        shutil.copy(flat / "red" / "1.png", flat / name)
    assert read(str(flat)) == whole
    with pytest.raises(cw.CommonweightError, match="one of images or sounds"):
        (tmp_path / "e" / "a.png").mkdir(parents=True)
        read(str(tmp_path / "e"))


def test_what_a_row_may_hold(here):
    """What `datasets` gives of a file, decoded or not."""
    path = next((here / "images" / "train" / "red").glob("*.png"))
    whole = sensing.image(str(path))
    for value in (path, {"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}, whole):
        assert np.array_equal(np.asarray(sensing.image(value)), np.asarray(whole))
        sensing.looked_at(value), sensing.digest(value)
    assert sensing.digest({"bytes": b"a", "path": None}) != sensing.digest({"bytes": b"b", "path": None})
    array = {"array": np.sin(np.arange(4000) / 5), "sampling_rate": 4000}
    assert sensing.seconds(array) == 1 and sensing.digest(array)
    assert len(sensing.sound(array, 2000, 10)) == 2000 and len(sensing.sound(array, 4000, 0.5)) == 2000
    assert np.abs(sensing.sound(array, 8000, 10)[::2] - array["array"]).max() < 0.1


@pytest.mark.parametrize("path", ["gone.wav", None])
def test_a_decoded_sound_is_its_array(path):
    """What `datasets` gives of a decoded column names the file too, which may be elsewhere."""
    wave = np.sin(np.arange(4000) / 5).astype(np.float32)
    plain = {"array": wave, "sampling_rate": 4000}
    named = {"path": path, **plain}
    for same in (named, {**named, "array": wave.tolist()}):
        assert sensing.seconds(same) == 1 and sensing.digest(same) == sensing.digest(plain)
        assert np.array_equal(sensing.sound(same, 4000, 10), wave) and sensing.lasting(same) is same
    stereo = {**named, "array": np.stack([wave, wave * 0])}
    assert sensing.seconds(stereo) == 1 and np.allclose(sensing.sound(stereo, 4000, 10), wave / 2)
    assert sensing.digest(stereo) != sensing.digest(plain) != sensing.digest({**plain, "sampling_rate": 8000})


@pytest.mark.parametrize("value", [{"path": None}, {"path": None, "bytes": None}, {}, 3, {"array": None}])
def test_a_value_that_is_nothing_is_told(value):
    for read_it in (sensing.seconds, sensing.digest):
        with pytest.raises(cw.CommonweightError, match="cannot be read"):
            read_it(value)
    for bad in ({"array": [1.0]}, {"array": [1.0], "sampling_rate": 0}, {"array": ["a"], "sampling_rate": 1}):
        with pytest.raises(cw.CommonweightError, match=r"cannot be read as a sound: (array|sampling_rate)"):
            sensing.digest(bad), sensing.seconds(bad)


def test_saved_data_sets_keep_their_files(here, tmp_path):
    import datasets

    paths = [str(p) for p in sorted((here / "images" / "train").rglob("*.png"))]
    found = datasets.Dataset.from_dict({"image": paths, "label": [Path(p).parent.name for p in paths]})
    found.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "d")
    rows = read(str(tmp_path / "d"))
    assert {*rows[0]["image"]} == {"bytes", "path"}
    host = adapt.open_host(here / "vit", "classify", dtype="float32")
    assert adapt.adapt(host, "t", rows, epochs=1).steps


def test_a_library_that_is_not_there(monkeypatch):
    def gone(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(sensing, "import_module", gone)
    with pytest.raises(cw.CommonweightError, match=r"images are read with PIL: pip install 'commonweight\[senses\]'"):
        sensing.image("a.png")
