from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from zipmoe.calibration.identity import cpu_model, disk_name, machine_identity
from zipmoe.errors import NotFound


def test_the_same_machine_has_the_same_digest_and_any_difference_another(tmp_path: Path) -> None:
    identity = machine_identity(tmp_path)
    assert identity.digest == machine_identity(tmp_path).digest
    assert len(identity.digest) == 16
    for field in fields(identity):
        other = replace(identity, **{field.name: 3 if field.name == "cores" else "other"})
        assert other.digest != identity.digest


def test_the_kernels_are_named_by_backend_and_content(tmp_path: Path) -> None:
    backend, checksum = machine_identity(tmp_path).kernels.split()
    assert backend.isalnum() and len(checksum) == 16


def test_an_arm_processor_is_named_by_its_part(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 62.50\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n")
    assert cpu_model(cpuinfo).endswith("0x41 0xd42")
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    assert cpu_model(cpuinfo).startswith("Some CPU @ 3 GHz")


def test_a_disk_is_named_by_file_system_device_and_model(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text(
        f"21 1 0:19 / /proc rw - proc proc rw\n22 1 {number} / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n"
    )
    assert disk_name(tmp_path, proc, sys) == "ext4 on /dev/nvme0n1p2"
    model = sys / "dev" / "block" / number / "device"
    model.mkdir(parents=True)
    (model / "model").write_text("Some  NVMe 1TB   \n")
    assert disk_name(tmp_path, proc, sys) == "ext4 on /dev/nvme0n1p2 (Some NVMe 1TB)"


def test_a_disk_that_the_kernel_does_not_name_has_its_number(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    assert disk_name(tmp_path, tmp_path, tmp_path) == f"unknown on {os.major(device)}:{os.minor(device)}"


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot stat"):
        machine_identity(tmp_path / "none")
