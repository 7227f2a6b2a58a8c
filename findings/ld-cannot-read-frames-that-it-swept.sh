#!/usr/bin/env bash
# GNU ld: what it swept in a relocatable link, it cannot read in the next one, on RISC-V.
#
# One would guess: an object of `ld -r --gc-sections` is an object like another, and .eh_frame, where
# the frames of functions that were dropped stay behind, is the linker's own business; on x86-64 and
# aarch64 it is so.
# What happens (binutils 2.40; LoongArch the same, with 2.47, too): on RISC-V a program with such an
# object links, with status 0, but "error in ...(.eh_frame); no .eh_frame_hdr table will be created":
# the table by which frames are looked for is empty, for the whole program and not for that object alone,
# so that C++ exceptions and cancelled threads end it. There the length of a function is two
# relocations, ADD32 and SUB32, for the linker may still make it shorter. Without --gc-sections, all is well.
#
# Libraries meet this that are made one object to hide what is inside.
#
# Takes the two binutils from Debian 12, in the versions below, into a temporary folder.
set -euo pipefail
version=2.40-2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/{state/lists,cache/archives}/partial "$work/root"
touch "$work/apt/status"
archive=$(grep -hoP '^(URIs:|deb)\s+(\[[^]]*\]\s+)?\K\S+/debian/?(?=\s|$)' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | sed -n 1p || true)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive bookworm main" >"$work/apt/sources.list"
cat >"$work/apt/apt.conf" <<END
Dir::State "$work/apt/state";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
Dir::Etc::SourceList "$work/apt/sources.list";
Dir::Etc::SourceParts "/nowhere";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
END
export APT_CONFIG=$work/apt/apt.conf
apt-get -qq update
apt-get -qq install --yes --download-only "binutils-x86-64-linux-gnu=$version" "binutils-riscv64-linux-gnu=$version"
for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
unset APT_CONFIG

cd "$work"
run() { # run PROGRAM ARGUMENT...: one of those, with its own libraries
    local program=$1
    shift
    root/lib64/ld-linux-x86-64.so.2 --library-path root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu "root/usr/bin/$program" "$@"
}
function_in_assembly() { # function_in_assembly NAME CALL
    cat <<END
        .section .text.$1, "ax", @progbits
        .globl $1
$1:     .cfi_startproc
        $2
        .cfi_def_cfa_offset 16
        ret
        .cfi_endproc
END
}
run riscv64-linux-gnu-ld --version | sed -n 1p
found=$(for machine in x86_64 riscv64; do
    { function_in_assembly unused "call main" && function_in_assembly wanted "call main"; } >library.s
    function_in_assembly main "call wanted" >program.s
    for part in library program; do run $machine-linux-gnu-as -o $part.o $part.s; done
    for option in --no-gc-sections --gc-sections; do
        run $machine-linux-gnu-ld -r $option --require-defined=wanted -o linked.o library.o
        status=0
        run $machine-linux-gnu-ld --eh-frame-hdr -e main -o program program.o linked.o 2>said || status=$?
        size=$(run $machine-linux-gnu-readelf --sections --wide program | sed -n 's/.* \.eh_frame_hdr *PROGBITS *[^ ]* *[^ ]* *\([^ ]*\) .*/\1/p')
        echo "$machine $option: status $status, .eh_frame_hdr of $((16#$size)) bytes$(sed -n 's/.*: error in [^ ]*\((.*\)/, error in \1/p' said)"
    done
done)
echo "$found"

expected='x86_64 --no-gc-sections: status 0, .eh_frame_hdr of 36 bytes
x86_64 --gc-sections: status 0, .eh_frame_hdr of 28 bytes
riscv64 --no-gc-sections: status 0, .eh_frame_hdr of 36 bytes
riscv64 --gc-sections: status 0, .eh_frame_hdr of 8 bytes, error in (.eh_frame); no .eh_frame_hdr table will be created'
if [ "$found" != "$expected" ]; then
    echo 'not as described'
    exit 1
fi
echo 'as described'
