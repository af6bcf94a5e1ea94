"""What s3prl and Hugging Face fetch: announced at once, never waited for in silence, kept whole."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from s3prl_varan.errors import UserError
from s3prl_varan.upstream.hub import family_of

TIMEOUT = 30.0  # seconds without a byte


def use_cache_dir(folder: str) -> None:
    """--cache_dir: s3prl's and torch.hub's downloads lie there; Hugging Face's where HF_HOME says.

    Call it before any upstream is built.
    """
    from s3prl.util import download

    torch.hub.set_dir(folder)
    download.set_dir(folder)


@contextmanager
def watched_downloads(name: str, downloads: list[Path]) -> Iterator[None]:
    """Announce what s3prl downloads for upstream `name`, and note the files in `downloads`.

    A download that fails, stalls or is empty ends in a UserError and leaves no file, where s3prl
    would take what is left for the model at the next call.
    """
    from s3prl.util import download

    original, second_way = download._download, download._download_url_to_file_requests

    def watched(filepath: Path, url: str, refresh: bool = False, *args: Any) -> None:
        path = Path(filepath)
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()  # left by a download that broke off
        if refresh or not path.is_file():
            print(f"downloading {name} from {url}", file=sys.stderr)
        try:
            original(path, url, refresh, *args)
        except Exception as error:
            raise download_error(name, url, error) from error
        with path.open("rb") as file:
            start = file.read(64)
        if not start or start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            path.unlink()
            raise download_error(
                name, url, "the server sent no model but an empty file or a web page"
            )
        downloads.append(path)

    def try_again(*args: Any, **kwargs: Any) -> None:
        error = sys.exc_info()[1]  # s3prl tries its second way after anything, Ctrl-C among it
        if not isinstance(error, Exception) or "timed out" in str(error):
            raise
        second_way(*args, **kwargs)

    get, urlopen = download.requests.get, download.urlopen
    with (
        mock.patch.object(download, "_download", watched),
        mock.patch.object(download, "_download_url_to_file_requests", try_again),
        mock.patch.object(download, "urlopen", partial(urlopen, timeout=TIMEOUT)),
        mock.patch.object(download.requests, "get", partial(get, timeout=TIMEOUT)),
    ):
        yield


def download_error(name: str, source: str, error: object) -> UserError:
    """The UserError for a download that failed, with what to do without internet."""
    for_files = [each for each in family_of(name) if each.endswith("_local")]
    remedy = "copy its cache (~/.cache/s3prl, or --cache_dir) here"
    if for_files:
        remedy = f"use `-u {for_files[0]} -k FILE` here"
    if isinstance(error, Exception):
        error = f"{type(error).__name__}: {shortened(str(error))}"
    return UserError(
        f"Upstream '{name}' could not be downloaded from {source} ({error}). "
        f"Without internet here, download it on a machine that has it, and {remedy}."
    )


def shortened(text: str) -> str:
    """The beginning of a message, on one line; never torch's advice to switch its guard off."""
    line = " ".join(text.split())
    if "weights_only" in line:
        return "not made of plain tensors"
    return line if len(line) <= 200 else f"{line[:200]}..."
