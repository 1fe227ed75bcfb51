#!/usr/bin/env bash
# Unpack the headers of ONNX Runtime's C API from Debian's libonnxruntime-dev into a folder.
#
# Debian 12 has no such package and pip's wheel has no headers, so this takes the package of Debian 13 without
# installing it, from the mirror that apt is set to: apt is pointed at folders of its own, and nothing of the
# system changes. The library itself comes from the wheel, or from the system; ONNX Runtime's C API is
# compatible with all later versions.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
if [ -e "$folder/usr/include/onnxruntime/onnxruntime_c_api.h" ]; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/{lists/partial,cache/archives/partial}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | sort | uniq -c |
    sort -rn | awk 'NR == 1 {print $2}')
if [ -z "$mirror" ]; then
    echo "error: apt lists no Debian mirror here; run apt-get update, or install libonnxruntime-dev" >&2
    exit 1
fi
echo "deb [signed-by=$keyring] $mirror trixie main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/lists";
Dir::State::status "/dev/null";
Dir::Cache "$work/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
export APT_CONFIG="$work/apt.conf"
apt-get --quiet=2 update
(cd "$work" && apt-get --quiet=2 download libonnxruntime-dev)
dpkg-deb --extract "$work"/libonnxruntime-dev_*.deb "$folder"
