"""Every kind of damage that fsck knows, and how to plant it."""

from __future__ import annotations

from tests.tools import plants_content, plants_names, plants_nodes, plants_setup

PLANTS = [*plants_setup.PLANTS, *plants_names.PLANTS, *plants_content.PLANTS, *plants_nodes.PLANTS]
