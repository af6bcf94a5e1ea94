"""Models of Hugging Face: a folder for a hub id, and weights that fill the model or are refused."""

import json
import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.upstream.downloads import TIMEOUT, shortened

READ_BY = {"wav2vec2": "hf_wav2vec2_custom", "hubert": "hf_hubert_custom", "whisper": "whisper"}
CONFIGS = ("preprocessor_config.json", "processor_config.json")
SHOWN_KEYS = 4


def find_folder(name_or_id: str, *, refresh: bool = False) -> Path:
    """-k: a folder, or a model's name on the hub, which is downloaded where it is not here yet.

    UserError where there is neither.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download

    folder = Path(name_or_id)
    if folder.is_file():
        raise UserError(
            f"-k: {folder} is a file; expected the folder with config.json and the weights."
        )
    if folder.is_dir():
        return folder
    if name_or_id.count("/") > 1 or name_or_id.startswith((".", "/", "~")):
        raise UserError(f"-k: there is no folder {name_or_id}.")
    print(f"downloading {name_or_id} from {constants.ENDPOINT}, if not here yet", file=sys.stderr)
    unreachable = None
    try:  # asks twice. snapshot_download itself would wait for an answer forever
        get_hf_file_metadata(hf_hub_url(name_or_id, "config.json"), timeout=TIMEOUT / 2)
    except Exception as error:  # offline, no such model, no access: of several libraries' types
        unreachable = error  # but it may be here from before
    wanted: dict[str, Any] = {"local_files_only": unreachable is not None}
    wanted["force_download"] = refresh and unreachable is None
    try:
        for weights in ("model*.safetensors*", "pytorch_model*"):
            patterns = ["config.json", *CONFIGS, weights]
            folder = Path(snapshot_download(name_or_id, allow_patterns=patterns, **wanted))
            if any(folder.glob(weights)):
                break
    except Exception as error:
        cause = unreachable or error
        raise UserError(
            f"-k: there is no folder {name_or_id}, and as a hub id it could not be downloaded "
            f"({type(cause).__name__}: {shortened(str(cause))}). Without internet here, download "
            f"it on a machine that has it (hf download {name_or_id}) and give the folder."
        ) from cause
    return folder


def check_preprocessor(folder: Path) -> None:
    """UserError where the folder lacks what s3prl would else try to fetch, of another model."""
    if not any((folder / each).is_file() for each in CONFIGS):
        raise UserError(
            f"-k: {folder} has no {CONFIGS[0]}, which says whether the waveform is normalised. "
            "Copy it from where the model is, or write it: `transformers.Wav2Vec2FeatureExtractor("
            "do_normalize=True or False, as it was trained).save_pretrained(FOLDER)`."
        )


@contextmanager
def complete_weights(name: str) -> Iterator[None]:
    """UserError where a checkpoint does not fill the model: transformers would draw the rest.

    Heads that pre-training or fine-tuning put on the encoder may be there besides.
    """
    from transformers import PreTrainedModel

    load = vars(PreTrainedModel)["from_pretrained"].__func__

    def checked(cls: Any, folder: str, *args: Any, **kwargs: Any) -> Any:
        asked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            model, info = load(cls, folder, *args, **kwargs, **asked)
        except Exception as error:  # another family's config may not even make a model
            fitting = _what_fits(name, Path(folder))
            if fitting is None:
                raise
            said = f"{type(error).__name__}: {shortened(str(error))}"
            raise UserError(f"Upstream '{name}' cannot be made: {said}. {fitting}") from error
        problems = _misfits(model, info)
        if problems:
            raise problems_error(
                f"Upstream '{name}': the weights in -k {folder} do not fit the model.",
                problems,
                _what_fits(name, Path(folder)) or "They are of this family: is a part missing?",
            )
        return model

    report = logging.getLogger("transformers.modeling_utils")  # says the same at length
    with (
        mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(checked)),
        mock.patch.object(report, "disabled", True),
    ):
        yield


def _misfits(model: Any, info: dict[str, Any]) -> list[str]:
    """What a checkpoint lacks, or has inside the parts that the model has too."""
    # Released checkpoints lack this one, which nothing but masking uses.
    missing = [key for key in info["missing_keys"] if key != "masked_spec_embed"]
    own = {key.partition(".")[0] for key in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    unexpected = [
        key
        for key in info["unexpected_keys"]
        if key.removeprefix(prefix).partition(".")[0] in own  # else a head
    ]
    return [
        *counted("missing", missing),
        *counted("unexpected", unexpected),
        *counted("of another size", [key for key, *_ in info["mismatched_keys"]]),
    ]


def _what_fits(name: str, folder: Path) -> str | None:
    """Which upstream reads a folder, by its config.json; None where it is `name`."""
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    fitting = READ_BY.get(model_type)
    if fitting == name:
        return None
    found = f"Its config.json says model_type '{model_type}'"
    if fitting is None:
        return f"{found}, which none of s3prl's upstreams reads."
    return f"{found}: use `-u {fitting} -k {folder}`."


def counted(kind: str, keys: Collection[str]) -> list[str]:
    """["5 missing: a, b, c, d, ..."], nothing where there are no keys."""
    shown = ", ".join(sorted(keys)[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
    return [f"{len(keys)} {kind}: {shown}"] if keys else []
