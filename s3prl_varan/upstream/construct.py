"""Make an expert from its factory, and say clearly why when that fails.

What can go wrong: flags, files, downloads, weights that do not fit, weights that would run code.
"""

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
from s3prl_varan.upstream.downloads import download_error, shortened, watched_downloads
from s3prl_varan.upstream.hub import TAKES_CKPT, Factory, family_of, missing_package
from s3prl_varan.upstream.hugging_face import (
    SHOWN_KEYS,
    check_preprocessor,
    complete_weights,
    counted,
    find_folder,
)

FLAGS = {"ckpt": "-k", "model_config": "-g"}
NEEDED = {
    "ckpt": "-k is missing: the checkpoint to load",
    "model_config": "-g is missing: the model's config file",
}
# torch.load's own switches.
FORCE_SAFE, FORCE_UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
PICKLED = re.compile(r"GLOBAL ([A-Za-z_]\w*\.[\w.]*\w)")  # how torch names what it will not load
OFFLINE = re.compile(
    r"connect|offline|resolve|timed out|temporary failure|unreachable|max retries", re.IGNORECASE
)


def construct(
    factory: Factory, ckpt: str | None, model_config: str | None, refresh: bool
) -> nn.Module:
    """Call the factory with the flags given.

    UserError where a flag is missing, would be ignored or leads nowhere, or where a checkpoint
    cannot be loaded. Errors inside a user's own expert are left as they are.
    """
    arguments = _checked_arguments(factory, ckpt, model_config, refresh)
    downloads: list[Path] = []
    with ExitStack() as stack:
        if factory.origin == "s3prl":
            stack.enter_context(redirect_stdout(sys.stderr))  # its experts print notes
            stack.enter_context(watched_downloads(factory.name, downloads))
            if ckpt is not None:
                stack.enter_context(_safe_loading())
            if ckpt is not None and factory.name.startswith("hf_"):
                folder = find_folder(ckpt, refresh=refresh)
                check_preprocessor(folder)
                arguments["ckpt"] = str(folder)
                stack.enter_context(complete_weights(factory.name))
        try:
            expert = factory.call(**arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            explained = _explain(factory, ckpt, error, downloads)
            if explained is None:
                raise
            raise explained from error
    if not isinstance(expert, nn.Module):
        made = type(expert).__name__
        raise UserError(f"-u {factory.name}: expected a torch.nn.Module, it made a {made}.")
    return expert


def _checked_arguments(
    factory: Factory, ckpt: str | None, model_config: str | None, refresh: bool
) -> dict[str, Any]:
    """Such of the flags as the factory takes; UserError with all that is wrong with them."""
    given = {"ckpt": ckpt, "model_config": model_config, "refresh": refresh or None}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        takes = dict(inspect.signature(factory.call).parameters)
    except ValueError:  # written in C: has no signature to ask
        takes = {}
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    problems = [
        f"{FLAGS[key]} {value}: this upstream takes no such argument"
        for key, value in given.items()
        if key in FLAGS and key not in takes and not open_ended
    ]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [
        key
        for key, each in takes.items()
        if each.kind in plain and each.default is inspect.Parameter.empty
    ]
    takes_ckpt = factory.origin == "s3prl" and factory.name.endswith(TAKES_CKPT)
    if takes_ckpt and "model_config" not in required:
        # Some of s3prl's factories take (*args, **kwargs), but need a checkpoint all the same.
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
    return {key: value for key, value in given.items() if open_ended or key in takes}


def _ckpt_problems(factory: Factory, ckpt: str | None) -> list[str]:
    """What is wrong with -k for one of s3prl's names."""
    name = factory.name
    if ckpt is None or factory.origin != "s3prl" or name == "customized_upstream":
        return []
    is_url = ckpt.startswith(("http://", "https://"))
    if not name.endswith(TAKES_CKPT):
        others = ", ".join(f"`-u {each} -k FILE`" for each in family_of(name))
        hint = f" Use {others}" if others else ""
        return [f"-k would be ignored, '{name}' brings its own weights or has none.{hint}"]
    if name.endswith("_url"):
        local = f"{name.removesuffix('_url')}_local"
        return [] if is_url else [f"-k must be a URL here, found {ckpt}; for a file use '{local}'"]
    takes_hub_id = name.startswith("hf_") or (name.endswith("_custom") and is_url)
    if not takes_hub_id and not Path(ckpt).is_file():
        return [f"-k: there is no file {ckpt}"]
    return []


@contextmanager
def _safe_loading() -> Iterator[None]:
    """No checkpoint of the user's may run code while it loads.

    Also where s3prl asks torch for full unpickling. Someone who sets torch's own
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD has decided otherwise, and is left to it.
    """
    switch = {} if os.environ.get(FORCE_UNSAFE) else {FORCE_SAFE: "1"}
    with mock.patch.dict(os.environ, switch):
        yield


def _explain(
    factory: Factory, ckpt: str | None, error: BaseException, downloads: list[Path]
) -> UserError | None:
    """The UserError for what went wrong.

    None for an error in the user's own code, which is theirs to see whole.
    """
    name, source = factory.name, f"-k {ckpt}" if ckpt else "its checkpoint"
    for cause in _causes(error):
        said = str(cause)
        if "loading state_dict" in said:
            return _mismatch_error(name, source, said)
        unpickling = isinstance(cause, pickle.UnpicklingError)
        needed = PICKLED.search(said) if unpickling else None
        if needed:
            return UserError(_needs_unpickling(name, source, needed.group(1)))
        # A KeyError of a number: an opcode that torch's unpickler does not know.
        opcode = isinstance(cause, KeyError) and not isinstance(cause.args[0], str)
        if unpickling or opcode or isinstance(cause, EOFError) or "PytorchStreamReader" in said:
            for path in downloads:
                path.unlink(missing_ok=True)
            again = " The downloaded file was removed: try again." if downloads else ""
            short = shortened(said) or "empty"
            return UserError(
                f"Upstream '{name}': {source} is no checkpoint, or damaged ({short}).{again}"
            )
        lacks = re.search(r"required key: (\S+) is missing", said)
        if lacks or (isinstance(cause, KeyError) and ckpt is not None):
            key = lacks.group(1) if lacks else cause.args[0]
            return UserError(
                f"Upstream '{name}': {source} is not a checkpoint of this family, "
                f"it has no '{key}'."
            )
        unreachable = isinstance(cause, OSError) and OFFLINE.search(said)
        if unreachable or isinstance(cause, URLError | ConnectionError):
            return download_error(name, ckpt or "the internet", cause)
    if factory.origin == "user":
        return None
    if isinstance(error, SystemExit):  # s3prl's way where a package is missing
        error = error.__context__ or error
    if isinstance(error, ImportError):
        return missing_package(name, error)
    said = shortened(str(error)) or "no reason given"
    return UserError(f"Upstream '{name}' could not be made: {type(error).__name__}: {said}.")


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
        problems += counted(kind.lower(), keys)
    size = r"torch\.Size\((\[.*?\])\)"
    sizes = re.findall(rf"size mismatch for (\S+): .*?{size}.*?{size}", said)
    problems += [
        f"{key}: {found} in the checkpoint, {wanted} in the model"
        for key, found, wanted in sizes[:SHOWN_KEYS]
    ]
    if len(sizes) > SHOWN_KEYS:
        problems.append(f"... {len(sizes)} tensors of another size in all")
    return problems_error(
        f"Upstream '{name}': the weights in {source} do not fit the model.",
        problems or [shortened(said)],
        "Is the checkpoint of this family, and complete? -u names the family, -k the file.",
    )


def _needs_unpickling(name: str, source: str, needed: str) -> str:
    return (
        f"Upstream '{name}': {source} holds Python objects ({needed}) besides tensors; loading "
        "them could run code hidden in the file, so it is refused. If you trust where it came "
        "from, and they are classes that hold data, convert it once: `with torch.serialization."
        "safe_globals([CLASSES]): state = torch.load(FILE, map_location='cpu')`, replace those "
        "objects by plain dicts, lists and numbers (vars(x) for a Namespace), then "
        "`torch.save(state, NEW_FILE)`, and give -k NEW_FILE."
    )
