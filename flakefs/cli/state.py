"""What the global options say: handed to every command as the object of its click context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flakefs.config import Config


@dataclass
class State:
    """Global options; the configuration is read when a command asks for it."""

    config_path: str | None = None
    debug: bool = False
    _config: Config | None = field(default=None, repr=False)

    @property
    def config(self) -> Config:
        if self._config is None:
            from flakefs.config import exposed, load

            self._config = load(self.config_path)
            if warning := exposed(self._config):
                click.echo(f"flakefs: warning: {warning}", err=True)
        return self._config


pass_state = click.make_pass_decorator(State, ensure=True)
"""Decorator: the command's first argument is the State."""
