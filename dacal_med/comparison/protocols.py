# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The published protocols that a bundle has as overlays, and of which of them the runs in a folder are."""

from __future__ import annotations

import json
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path

from dacal_med.comparison.schedule import RECORD
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path

PUBLISHED = "published.json"
DEFAULT = "daformer"


@dataclass(frozen=True)
class Protocol:
    """Published settings.

    Attributes:
        name: as on the command line.
        overlays: configuration files after ``published.json``.
        method: what published numbers call the method that has these settings.
    """

    name: str
    overlays: tuple[str, ...]
    method: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(DEFAULT, (), "DAFormer"),
        Protocol("hrda", ("published_hrda.json",), "HRDA"),
        Protocol("mic", ("published_mic.json",), "MIC (DAFormer)"),
        Protocol("mic_hrda", ("published_hrda.json", "published_mic.json"), "MIC (HRDA)"),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol called ``name``.

    Raises:
        InputError: if there is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise InputError(f"--protocol: found {name!r}, wanted one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_files(bundle: Path, protocol: Protocol) -> tuple[str, ...]:
    """Return the configuration files of a protocol; a bundle without published settings has the default one alone.

    Raises:
        InputError: if the folder is not that of a bundle, or an overlay is missing.
    """
    configs = given_path(bundle, "benchmark") / "configs"
    if not (configs / "train.json").is_file():
        raise InputError(f"benchmark: found no {configs / 'train.json'}; wanted the folder of a bundle")
    names = [PUBLISHED, *protocol.overlays]
    missing = [str(configs / name) for name in names if not (configs / name).is_file()]
    if missing and protocol.name != DEFAULT:
        raise InputError(f"--protocol {protocol.name}: found no {missing[0]}; wanted a bundle that has it")
    return tuple(str(configs / name) for name in ("train.json", *names) if str(configs / name) not in missing)


def check_folder(folder: Path, protocol: Protocol) -> None:
    """Refuse a folder with runs of another protocol, whose methods would stand in one table with these.

    Raises:
        InputError: naming both.
    """
    known = {name for other in PROTOCOLS.values() for name in other.overlays}
    for record in sorted((folder / "runs").rglob(RECORD)):
        try:
            command = json.loads(record.read_bytes())["command"]
            files = [Path(file).name for file in literal_eval(command[command.index("--config_file") + 1])]
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError):
            continue  # the job itself tells what is wrong with its record
        overlays = tuple(name for name in files if name in known)
        others = [other.name for other in PROTOCOLS.values() if other.overlays == overlays]
        if others and others[0] != protocol.name:
            raise InputError(
                f"--out: {folder} holds runs of --protocol {others[0]}, wanted a folder for {protocol.name}; "
                f"give another --out, or --protocol {others[0]}"
            )
