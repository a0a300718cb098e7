"""The versions of each model, and the champion that scoring uses by default."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.files import read_json, sync_directory, write_json, write_manifest
from pipeline.models.bundle import Bundle
from pipeline.workspace import Workspace, user_name


@dataclass(frozen=True)
class Registry:
    """The models of a workspace."""

    workspace: Workspace

    def names(self) -> list[str]:
        """Return the models with at least one version, sorted."""
        return sorted(path.name for path in self.workspace.models.glob("*") if self.versions(path.name))

    def versions(self, name: str) -> list[int]:
        """Return the registered versions of a model, oldest first."""
        manifests = self.workspace.model_dir(name).glob("*/manifest.json")
        return sorted(int(path.parent.name) for path in manifests if path.parent.name.isdecimal())

    def champion(self, name: str) -> int | None:
        """Return the version that scoring uses by default, or None."""
        state = self._state(name)
        return int(state["version"]) if state else None

    def load(self, name: str, version: int) -> Bundle:
        """Return a version, its files checked.

        Raises:
            ModelError: it is unknown or damaged.
        """
        if version not in self.versions(name):
            titles = ", ".join(f"{name}@{number}" for number in self.versions(name)) or "none"
            raise ModelError(f"no model {name}@{version} (there: {titles})")
        return Bundle.load(name, self.workspace.model_dir(name) / str(version))

    def find(self, spec: str | None = None) -> Bundle:
        """Return the bundle of `name` (its champion) or `name@version`; without a spec, of the only model.

        Raises:
            ModelError: no such model, no champion, or no spec and more than one model.
        """
        names = self.names()
        if not names:
            raise ModelError(f"no model in {self.workspace.root} yet: train one with nightlabel train")
        if spec is None and len(names) > 1:
            raise ModelError(f"several models here: choose one with --model ({', '.join(names)})")
        name, _, version = (spec or names[0]).partition("@")
        if name not in names:
            raise ModelError(f"no model {name!r} (there: {', '.join(names)})")
        if version:
            if not version.isdecimal():
                raise ModelError(f"model {spec!r}: write a version as a number, for example {name}@1")
            return self.load(name, int(version))
        champion = self.champion(name)
        if champion is None:
            raise ModelError(f"model {name!r} has no champion: nightlabel models promote {name}@VERSION")
        return self.load(name, champion)

    def next_version(self, name: str) -> int:
        """Return the number of a model's next version, after all that have a folder, complete or not."""
        numbers = (int(path.name) for path in self.workspace.model_dir(name).glob("*") if path.name.isdecimal())
        return max(numbers, default=0) + 1

    def add(self, name: str, staged: Path, facts: Mapping[str, Any]) -> Bundle:
        """Make a staged folder the next version, with `facts` and digests in its manifest, and not champion."""
        home = self.workspace.model_dir(name)
        home.mkdir(parents=True, exist_ok=True)
        version = self.next_version(name)
        write_manifest(staged, name=name, version=version, **facts)
        staged.rename(home / str(version))
        sync_directory(home)
        return self.load(name, version)

    def promote(self, name: str, version: int, reason: str, *, forced: bool = False) -> None:
        """Make a version the champion; `rollback` returns to the one before.

        Args:
            name: the model's.
            version: the new champion.
            reason: for the log, beside user and time.
            forced: whether the rule of `pipeline.promotion.rule` was overruled.

        Raises:
            ModelError: the version is unknown or damaged.
        """
        self.load(name, version)
        state = self._state(name) or {"previous": [], "log": []}
        if state.get("version") not in (None, version):
            state["previous"].append(state["version"])
        self._write(name, state, version, "force" if forced else "promote", reason)

    def rollback(self, name: str) -> int:
        """Make the previous champion champion again, and return its version.

        Raises:
            ModelError: there is no previous one.
        """
        state = self._state(name)
        if not state or not state["previous"]:
            raise ModelError(f"model {name!r} has no earlier champion to roll back to")
        version = int(state["previous"].pop())
        self.load(name, version)
        self._write(name, state, version, "rollback", f"rolled back from version {state['version']}")
        return version

    def _write(self, name: str, state: dict[str, Any], version: int, action: str, reason: str) -> None:
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        state["version"] = version
        entry = {"at": at, "by": user_name(), "action": action, "version": version, "reason": reason}
        state["log"].append(entry)
        write_json(self._champion_file(name), state)

    def _state(self, name: str) -> dict[str, Any] | None:
        path = self._champion_file(name)
        if not path.exists():
            return None
        try:
            return read_json(path)
        except ValueError as error:
            raise ModelError(f"{path} is damaged; delete it and promote a version again") from error

    def _champion_file(self, name: str) -> Path:
        return self.workspace.model_dir(name) / "champion.json"
