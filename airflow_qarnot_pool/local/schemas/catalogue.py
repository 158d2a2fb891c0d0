"""Profiles and machines of the local Qarnot (Qarnot API: qarnot-api.md 3.8, 3.10, 7.1)."""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.local.backend.tasks import CPU_MODEL, SPECIFICATION
from airflow_qarnot_pool.local.schemas.errors import missing
from airflow_qarnot_pool.local.schemas.fields import Profiles

_CONSTANTS = (
    ("DOCKER_SRV", "https://registry-1.docker.io", "Docker registry (not used locally)"),
    ("DOCKER_REPO", "library/ubuntu", "Docker image (not used locally)"),
    ("DOCKER_TAG", "latest", "Docker tag (not used locally)"),
    ("DOCKER_REGISTRY_LOGIN", "", "Login of a private registry (not used locally)"),
    ("DOCKER_REGISTRY_PASSWORD", "", "Password of a private registry (not used locally)"),
    ("DOCKER_CMD", "", "Command"),
    ("DOCKER_USER", "", "User (not used locally)"),
    ("DOCKER_HOST", "", "Host name (not used locally)"),
    ("DOCKER_WORKDIR", "${DOCKER_WORKDIR}", "Working directory"),
    ("RESOURCES_PATH", "/job", "Mount point"),
)
CONSTRAINTS: list[dict[str, Any]] = [
    {"discriminator": "MinimumCoreHardwareConstraint", "coreCount": 8},
    {"discriminator": "MaximumCoreHardwareConstraint", "coreCount": 8},
    {"discriminator": "MinimumRamHardwareConstraint", "minimumMemoryMB": 32768.0},
    {"discriminator": "SpecificHardwareConstraint", "specificationKey": SPECIFICATION},
    {"discriminator": "CpuModelHardwareConstraint", "cpuModel": CPU_MODEL},
    {"discriminator": "NoGpuHardwareConstraint"},
    {"discriminator": "SSDHardwareConstraint"},
]


def profile(profiles: Profiles, name: str) -> dict[str, Any]:
    """Return a profile. Raises ApiError 404."""
    if name not in profiles:
        raise missing("profile", name)
    constants = [{"name": n, "value": v, "description": text} for n, v, text in _CONSTANTS]
    return {"name": name, "constants": constants, "licenses": []}


def constraints(limit: int, offset: int) -> dict[str, Any]:
    """Return an offset page of GET /hardware-constraints."""
    return {
        "data": CONSTRAINTS[offset : offset + limit],
        "offset": offset,
        "limit": limit,
        "total": len(CONSTRAINTS),
    }


def cpu_models(wanted: str) -> list[dict[str, Any]]:
    """Return GET /hardware-constraints/cpu-model-constraints/search."""
    return [
        c for c in CONSTRAINTS if wanted.lower() in str(c.get("cpuModel", "")).lower() and "cpuModel" in c
    ]
