"""Make an expert from its factory, and say clearly why when that fails: flags, files, downloads, weights that do not fit."""

import inspect
import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import URLError

from torch import nn

from s3prl_varan.errors import UserError, problems_error
from s3prl_varan.upstream.names import TAKES_CKPT, Factory, family_of

FLAGS = {"ckpt": "-k", "model_config": "-g"}
NEEDED = {
    "ckpt": "-k is missing: the checkpoint to load",
    "model_config": "-g is missing: the model's config file",
}
FORCE_SAFE, FORCE_UNSAFE = (
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)  # torch.load's switches
HUB_ERRORS = (
    "LocalEntryNotFoundError",
    "RepositoryNotFoundError",
    "GatedRepoError",
    "HFValidationError",
)
SHOWN_KEYS = 4
PICKLED = re.compile(
    r"GLOBAL ([A-Za-z_]\w*\.[\w.]*\w)"
)  # torch's way to name an object it will not load
OFFLINE = re.compile(
    r"connect|offline|resolve|timed out|temporary failure|unreachable|max retries", re.IGNORECASE
)


def construct(
    factory: Factory, ckpt: str | None, model_config: str | None, refresh: bool
) -> nn.Module:
    """Call the factory with the flags given; UserError where a flag is missing, idle or leads nowhere."""
    arguments = _checked_arguments(factory, ckpt, model_config, refresh)
    downloads: list[Path] = []
    with ExitStack() as stack:
        if factory.origin == "s3prl":
            stack.enter_context(redirect_stdout(sys.stderr))  # its experts print notes
            stack.enter_context(_noted_downloads(factory.name, downloads))
            if ckpt is not None:
                stack.enter_context(_safe_loading())
        try:
            if factory.name.startswith("hf_") and ckpt is not None and not Path(ckpt).exists():
                _check_hub(ckpt)
            expert = factory.call(**arguments)
        except UserError:
            raise
        except Exception as error:
            explained = _explain(factory, ckpt, error, downloads)
            if explained is None:
                raise
            raise explained from error
    if not isinstance(expert, nn.Module):
        raise UserError(
            f"-u {factory.name}: expected a torch.nn.Module, it made a {type(expert).__name__}."
        )
    return expert


def _checked_arguments(
    factory: Factory, ckpt: str | None, model_config: str | None, refresh: bool
) -> dict[str, Any]:
    given = {"ckpt": ckpt, "model_config": model_config, "refresh": refresh or None}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        parameters = dict(inspect.signature(factory.call).parameters)
    except ValueError:  # written in C: has no signature to ask
        parameters = {}
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    problems = [
        f"{FLAGS[key]} {value}: this upstream takes no such argument" for key, value in given.items()
        if key in FLAGS and key not in parameters and not open_ended
    ]  # fmt: skip
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [
        key
        for key, each in parameters.items()
        if each.kind in plain and each.default is inspect.Parameter.empty
    ]
    if (
        factory.origin == "s3prl"
        and factory.name.endswith(TAKES_CKPT)
        and "model_config" not in required
    ):
        required = ["ckpt", *(key for key in required if key != "ckpt")]
    problems += [
        NEEDED.get(key, f"argument '{key}' is needed and no flag gives it")
        for key in required
        if key not in given
    ]
    problems += _ckpt_problems(factory, ckpt)
    if model_config is not None and not Path(model_config).is_file():
        problems.append(f"-g: there is no file {model_config}")
    if problems:
        raise problems_error(f"Upstream '{factory.name}' cannot be made:", problems)
    return {key: value for key, value in given.items() if open_ended or key in parameters}


def _ckpt_problems(factory: Factory, ckpt: str | None) -> list[str]:
    """What is wrong with -k for one of s3prl's names."""
    if ckpt is None or factory.origin != "s3prl":
        return []
    name, is_url = factory.name, ckpt.startswith(("http://", "https://"))
    if not name.endswith(TAKES_CKPT):
        if name == "customized_upstream":
            return []
        mine = ", ".join(f"`-u {each} -k FILE`" for each in family_of(name))
        return [
            f"-k would be ignored, '{name}' brings its own weights or has none."
            + (f" Use {mine}" if mine else "")
        ]
    if name.endswith("_url") and not is_url:
        return [
            f"-k must be a URL here, found {ckpt}; for a file use '{name.removesuffix('_url')}_local'"
        ]
    takes_hub_id = name.startswith("hf_") or (name.endswith("_custom") and is_url)
    if not name.endswith("_url") and not takes_hub_id and not Path(ckpt).is_file():
        return [f"-k: there is no file {ckpt}"]
    return []


@contextmanager
def _safe_loading() -> Iterator[None]:
    """No checkpoint given by the user may run code while it loads, also where s3prl asks torch for full unpickling.

    Someone who sets torch's own TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD has decided otherwise, and is left to it.
    """
    if os.environ.get(FORCE_UNSAFE):
        yield
        return
    with mock.patch.dict(os.environ, {FORCE_SAFE: "1"}):
        yield


@contextmanager
def _noted_downloads(name: str, downloads: list[Path]) -> Iterator[None]:
    """Note the files that s3prl downloads; a download that fails or is empty ends in a UserError and leaves no file."""
    from s3prl.util import download

    original = download._download

    def noted(filepath: Path, url: str, *args: Any, **kwargs: Any) -> None:
        path = Path(filepath)
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()  # left by a download that broke off
        try:
            original(path, url, *args, **kwargs)
        except Exception as error:
            raise _download_error(name, url, error) from error
        with path.open("rb") as file:
            start = file.read(64)
        if not start or start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            path.unlink()
            raise _download_error(
                name, url, "the server sent no model but an empty file or a web page"
            )
        downloads.append(path)

    with mock.patch.object(download, "_download", noted):
        yield


def _check_hub(hub_id: str) -> None:
    """Fail at once where the hub does not answer; transformers would try again for a minute and a half."""
    from huggingface_hub import snapshot_download

    snapshot_download(hub_id, allow_patterns=["config.json"])


def _download_error(name: str, source: str, error: object) -> UserError:
    locals_ = [each for each in family_of(name) if each.endswith(("_local", "_custom"))]
    offline = (
        f"use `-u {locals_[0]} -k FILE` here"
        if locals_
        else "copy its cache (~/.cache/s3prl, ~/.cache/huggingface) here"
    )
    said = (
        f"{type(error).__name__}: {_short(str(error))}" if isinstance(error, Exception) else error
    )
    return UserError(
        f"Upstream '{name}' could not be downloaded from {source} ({said}). "
        f"Without internet here, download it on a machine that has it, and {offline}."
    )


def _explain(
    factory: Factory, ckpt: str | None, error: Exception, downloads: list[Path]
) -> UserError | None:
    """The UserError for what went wrong; None for an error in the user's own code, which is theirs to see whole."""
    name, source = factory.name, f"-k {ckpt}" if ckpt else "its checkpoint"
    chain = list(_causes(error))
    for cause in chain:
        said = str(cause)
        if "loading state_dict" in said:
            return _mismatch_error(name, source, said)
        needed = PICKLED.search(said) if isinstance(cause, pickle.UnpicklingError) else None
        if needed:
            return UserError(_needs_unpickling(name, source, needed.group(1)))
        damaged = (
            isinstance(cause, pickle.UnpicklingError | EOFError) or "PytorchStreamReader" in said
        )
        if damaged or (
            isinstance(cause, KeyError) and not isinstance(cause.args[0], str)
        ):  # an opcode torch does not know
            for path in downloads:
                path.unlink(missing_ok=True)
            again = " The downloaded file was removed: try again." if downloads else ""
            return UserError(
                f"Upstream '{name}': {source} is no checkpoint, or damaged ({_short(said) or 'empty'}).{again}"
            )
        lacks = re.search(r"required key: (\S+) is missing", said)
        if lacks or (isinstance(cause, KeyError) and ckpt is not None):
            key = lacks.group(1) if lacks else cause.args[0]
            return UserError(
                f"Upstream '{name}': {source} is not a checkpoint of this family, it has no '{key}'."
            )
        if (
            isinstance(cause, URLError | ConnectionError)
            or type(cause).__name__ in HUB_ERRORS
            or (isinstance(cause, OSError) and OFFLINE.search(said))
        ):
            return _download_error(name, ckpt or "the internet", cause)
    if factory.origin == "user":
        return None
    if isinstance(error, ImportError):
        return UserError(
            f"Upstream '{name}' needs a package that is missing: {error}. Install it (pip) and try again."
        )
    return UserError(
        f"Upstream '{name}' could not be made: {type(error).__name__}: {_short(str(error)) or 'no reason given'}."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _mismatch_error(name: str, source: str, said: str) -> UserError:
    """A few lines of torch's list of every key that does not fit."""
    problems = []
    for kind in ("Missing", "Unexpected"):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*)", said)
        keys = re.findall(r'"([^"]+)"', listed.group(1)) if listed else []
        if keys:
            problems.append(
                f"{len(keys)} {kind.lower()}: {', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''}"
            )
    sizes = re.findall(
        r"size mismatch for (\S+): .*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)", said
    )
    problems += [
        f"{key}: {found} in the checkpoint, {wanted} in the model"
        for key, found, wanted in sizes[:SHOWN_KEYS]
    ]
    if len(sizes) > SHOWN_KEYS:
        problems.append(f"... {len(sizes)} tensors of another size in all")
    return problems_error(
        f"Upstream '{name}': the weights in {source} do not fit the model.",
        problems or [_short(said)],
        "Is the checkpoint of this family, and complete? -u names the family, -k the file.",
    )


def _needs_unpickling(name: str, source: str, needed: str) -> str:
    return (
        f"Upstream '{name}': {source} holds Python objects ({needed}) besides tensors; loading them "
        "could run code hidden in the file, so it is refused. If you trust where it came from, convert it once: "
        "`state = torch.load(FILE, map_location='cpu', weights_only=False)`, replace those objects by plain dicts, lists and "
        "numbers (vars(x) for a Namespace), then `torch.save(state, NEW_FILE)`, and give -k NEW_FILE."
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."
