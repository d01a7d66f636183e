"""The lab's launcher: what it says where something is missing, the kernel that it gets, what that starts from.

None of it needs root. Tests that start the machine need its packages and its kernel, and say how to get them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from rdmakit.cli import main
from rdmakit.errors import BadArgument, DeviceFault, HangError, NotAvailable
from rdmakit.lab import cache_folder, download_kernel, find_kernel, missing_programs, run
from rdmakit.lab.initramfs import archive, initramfs

VERSION = "9.1.2+deb99-amd64"
MODULES = ("rdma_rxe", "ib_uverbs", "rdma_ucm", "veth", "sch_tbf", "sch_netem", "9p", "9pnet_virtio", "overlay")


def ready() -> str:
    """What to do before the machine can start; nothing when it can."""
    missing = missing_programs()
    if missing:
        return f"apt-get install -y {' '.join(missing)}; make lab-setup"
    try:
        find_kernel()
    except NotAvailable:
        return "make lab-setup"
    return ""


needs_the_machine = pytest.mark.skipif(bool(ready()), reason=f"needs the lab: {ready()}")


# ---- what is missing
def test_without_a_kernel_the_command_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RDMAKIT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr("rdmakit.lab.machine.missing_programs", list)
    assert main(["lab", "--", "true"]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "make lab-setup" in said


def test_without_its_packages_the_command_names_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rdmakit.lab.machine._program", lambda name: None)
    assert main(["lab", "--", "true"]) == 2
    said = capsys.readouterr().err
    assert "apt-get install -y --no-install-recommends qemu-system-x86 busybox-static kmod iproute2" in said


def test_what_makes_no_sense_is_refused():
    with pytest.raises(BadArgument, match="nothing to run"):
        run([])
    with pytest.raises(BadArgument, match="no such host"):
        run(["true"], host="2")
    with pytest.raises(BadArgument, match="no such host"):
        run(["true"], host="0", hosts=0)
    with pytest.raises(BadArgument, match="no such accelerator"):
        run(["true"], accelerator="hope")


def test_the_cache_is_where_it_is_said_to_be(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("RDMAKIT_LAB_CACHE", raising=False)
    assert cache_folder() == Path("/somewhere/rdmakit/lab")
    monkeypatch.setenv("RDMAKIT_LAB_CACHE", "/else")
    assert cache_folder() == Path("/else")


# ---- getting a kernel, from an apt that is played
def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    tree = folder / "build" / name
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    (tree / "DEBIAN").mkdir(parents=True)
    control = {"Package": name, "Version": "1", "Architecture": "amd64", "Maintainer": "a <a@b>", "Description": "d"}
    (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
    subprocess.run(["dpkg-deb", "-b", str(tree), str(folder / f"{name}.deb")], check=True, capture_output=True)


@pytest.fixture
def played_apt(tmp_path, monkeypatch):
    """apt-get and apt-cache as programs that know one kernel, in the three packages of today's Debian."""
    if shutil.which("dpkg-deb") is None or shutil.which("depmod", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("needs dpkg-deb and depmod: apt-get install -y dpkg kmod")
    store, programs = tmp_path / "store", tmp_path / "bin"
    programs.mkdir()
    modules = {f"usr/lib/modules/{VERSION}/kernel/{name}.ko": b"no ELF, and depmod says so" for name in MODULES}
    package(store, f"linux-modules-{VERSION}", modules)
    package(store, f"linux-base-{VERSION}", {f"usr/lib/modules/{VERSION}/modules.order": b""})
    package(store, f"linux-binary-unsigned-{VERSION}", {f"usr/lib/modules/{VERSION}/vmlinuz.unsigned": b"an image"})
    apt = f"""#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
echo "$(basename $0) $*" >> {tmp_path}/log
case $1 in
show) echo "Depends: linux-image-{VERSION} (= 1)" ;;
pkgnames) for deb in {store}/*.deb; do basename $deb .deb; done ;;
download) shift; for name; do cp {store}/$name.deb . || exit; done ;;
update) [ ! -e {tmp_path}/offline ] || {{ echo "E: no network today" >&2; exit 100; }} ;;
esac
"""
    for name in ("apt-get", "apt-cache"):
        (programs / name).write_text(apt)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path


def test_the_newest_kernel_is_unpacked_once(played_apt):
    folder = played_apt / "cache"
    kernel = download_kernel(folder)
    assert (kernel.version, kernel.image.read_bytes()) == (VERSION, b"an image")
    assert (kernel.modules / "kernel/rdma_rxe.ko").exists() and (kernel.modules / "modules.dep").exists()
    assert find_kernel(folder) == kernel
    assert [path.name for path in folder.iterdir()] == [VERSION], "nothing of the download is left"
    assert download_kernel(folder) == kernel
    log = (played_apt / "log").read_text()
    assert log.count("apt-get download") == 1 and log.count("apt-get update") == 2


def test_without_a_network_it_says_so_and_leaves_nothing(played_apt):
    (played_apt / "offline").touch()
    with pytest.raises(NotAvailable, match="no network today") as caught:
        download_kernel(played_apt / "cache")
    assert "RDMAKIT_LAB_MIRROR" in caught.value.remedy and not list((played_apt / "cache").iterdir())


def test_a_kernel_that_lacks_a_module_is_not_kept(played_apt):
    shutil.rmtree(played_apt / "store/build")
    few = {f"usr/lib/modules/{VERSION}/kernel/{name}.ko": b"" for name in MODULES if name != "rdma_rxe"}
    package(played_apt / "store", f"linux-modules-{VERSION}", few)
    with pytest.raises(NotAvailable, match="rdma_rxe"):
        download_kernel(played_apt / "cache")
    with pytest.raises(NotAvailable, match="no kernel yet"):
        find_kernel(played_apt / "cache")


def test_a_cache_that_cannot_be_written_is_named(played_apt):
    (played_apt / "file").touch()
    with pytest.raises(NotAvailable, match="RDMAKIT_LAB_CACHE") as caught:
        download_kernel(played_apt / "file" / "cache")
    assert "file/cache" in str(caught.value)


def test_other_processors_are_told(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(NotAvailable, match="aarch64"):
        download_kernel(Path("/nonexistent"))


# ---- the archive
@pytest.mark.skipif(shutil.which("cpio") is None, reason="apt-get install -y cpio")
def test_cpio_unpacks_the_archive(tmp_path, rng):
    data = rng.integers(0, 256, 1001, "u1").tobytes()
    files = {"bin": (0o040755, b""), "bin/tool": (0o100755, data)}
    files |= {"sh": (0o120777, b"bin/tool"), "empty": (0o100644, b"")}
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["cpio", "-i", "--quiet"], input=archive(files), cwd=unpacked, check=True)
    assert (unpacked / "bin/tool").read_bytes() == (unpacked / "sh").read_bytes() == data
    assert os.access(unpacked / "bin/tool", os.X_OK) and (unpacked / "empty").read_bytes() == b""


def test_it_is_made_again_when_what_it_holds_is_newer(played_apt):
    kernel = download_kernel(played_apt / "cache")
    busybox, init = played_apt / "busybox", played_apt / "init.sh"
    busybox.write_bytes(b"one"), init.write_bytes(b"first")
    made = initramfs(kernel, busybox, init)
    assert b"first" in made.read_bytes()
    before = made.stat().st_mtime_ns
    assert initramfs(kernel, busybox, init).stat().st_mtime_ns == before
    init.write_bytes(b"second")
    later = time.time() + 5
    os.utime(init, (later, later))
    assert b"second" in initramfs(kernel, busybox, init).read_bytes()


# ---- a machine that is played: what it says of itself is what counts
@pytest.fixture
def played_machine(played_apt, monkeypatch):
    """`played_machine(*lines)`: the n-th start does what the n-th line of shell says, in the control folder."""
    monkeypatch.setenv("RDMAKIT_LAB_CACHE", str(played_apt / "cache"))
    monkeypatch.setattr("rdmakit.lab.machine.missing_programs", list)
    download_kernel(played_apt / "cache")

    def play(*lines):
        starts = "\n".join(f"{number}) {line} ;;" for number, line in enumerate(lines, 1))
        script = f"""#!/bin/bash
for word; do case $word in local,id=control,*) folder=${{word#*path=}} ;; esac; done
cd "${{folder%%,*}}" && echo start >> {played_apt}/starts
echo "Kernel panic - not syncing: attempt $(wc -l < {played_apt}/starts)" > console
case $(wc -l < {played_apt}/starts) in
{starts}
esac
"""
        for name in ("qemu-system-x86_64", "busybox"):
            (played_apt / "bin" / name).write_text(script)
            (played_apt / "bin" / name).chmod(0o755)
        return lambda: (played_apt / "starts").read_text().count("start")

    return play


def test_a_machine_that_dies_while_it_boots_is_started_anew(played_machine, capfd):
    starts = played_machine("exit 1", "sleep 0.3; touch began; echo 5 > status", "exit 1")
    outcome = run(["true"], seconds=60)
    assert starts() == 2 and outcome.status == 5 and 0.2 < outcome.boot_s < outcome.total_s
    said = capfd.readouterr().err
    assert "started anew; the console's end: Kernel panic - not syncing: attempt 1" in said and "attempt 2" not in said


def test_a_machine_that_never_boots_is_given_up(played_machine, capfd):
    starts = played_machine()
    with pytest.raises(DeviceFault, match="qemu has ended without a status") as caught:
        run(["true"], seconds=60)
    assert starts() == 3 and "attempt 3" in caught.value.rule
    assert capfd.readouterr().err.count("started anew") == 2


@pytest.mark.parametrize("line", ["touch began", "echo no net > problem"], ids=["in the command", "with a reason"])
def test_a_machine_that_dies_otherwise_is_not_started_again(played_machine, line):
    """A command that has begun is not run twice."""
    starts = played_machine(line)
    with pytest.raises(DeviceFault, match="the lab's machine died"):
        run(["true"], seconds=60)
    assert starts() == 1


def test_all_starts_together_have_the_time_that_one_has(played_machine):
    starts = played_machine("sleep 1", "exec sleep 60")
    with pytest.raises(HangError, match="its time was up"):
        run(["true"], seconds=2)
    assert starts() == 2


# ---- the machine
@needs_the_machine
@pytest.mark.lab
@pytest.mark.timeout(200)
def test_the_machine_has_two_hosts_and_gives_back_what_its_command_does(tmp_path):
    """Its status, its output, what it leaves in /out, a rank's variables; nothing else of ours changes."""
    here = tmp_path / "here"
    script = (
        'echo "$RANK of $WORLD_SIZE: $(ls /sys/class/infiniband | xargs)"; [ $RANK = 0 ] || { touch "$1"; exit 7; }; '
        'for device in /sys/class/infiniband/*; do cat $device/ports/1/state; done > /out/states'
    )
    with (tmp_path / "output").open("w+") as output:
        command = ["bash", "-c", script, "it", str(here)]
        outcome = run(command, host="each", out=tmp_path / "out", stdout=output, seconds=180)
        output.seek(0)
        lines = sorted(output.read().split("\n"))
    assert outcome.status == 7 and 0 < outcome.boot_s < outcome.total_s
    assert lines[-2:] == ["h0: 0 of 2: h0r0 h0r1", "h1: 1 of 2: h1r0 h1r1"]
    assert (tmp_path / "out/states").read_text().split("\n")[:2] == ["4: ACTIVE"] * 2
    assert not here.exists(), "the overlay took it"


@needs_the_machine
def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadArgument, match="no folder for /out"):
        run(["true"], out=tmp_path / "file")


@needs_the_machine
@pytest.mark.lab
def test_a_machine_that_takes_too_long_is_killed():
    with pytest.raises(HangError, match="its time was up"):
        run(["sleep", "100"], seconds=2)
