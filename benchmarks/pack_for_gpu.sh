#!/bin/sh
# Data and wheels for benchmarks/on_gpu.py as parts of a given size, for a machine without a network.
#
#   benchmarks/pack_for_gpu.sh [-d DIR]... [-w REQUIREMENT]... [-W DIR]... [-s MIB] [-p VERSION] OUT
#
#   -d DIR          data: its .npz archives and .pth weights (recipes/seven-tasks.yaml names them)
#   -w REQUIREMENT  a wheel more, fetched by pip: tensorrt-rtx-cu13, tensorrt-rtx-cu13-libs, …
#   -W DIR          wheels that lie there already; with it alone nothing is fetched
#   -s MIB          the largest part, 60 by default
#   -p VERSION      the Python there, 3.12 by default
#
# What lorkd-deploy needs and a machine with torch may lack is fetched first (BASE below), in the
# versions of constraints.txt. The parts are of one archive, in the order data, wheels as they were
# asked for: give the largest and least needed last (onnxruntime-gpu), and leave its parts behind
# where there is no room. OUT/README says how to unpack them.
set -eu
BASE="pydantic pydantic-core annotated-types typing-inspection onnxconverter-common"
here=$(cd "$(dirname "$0")/.." && pwd)
usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }

size=60 python=3.12 data= wanted= given= fetch=
while getopts d:w:W:s:p: option; do
  case $option in
    d) data="$data
$OPTARG" ;;
    w) wanted="$wanted $OPTARG" fetch=yes ;;
    W) given="$given
$OPTARG" ;;
    s) size=$OPTARG ;;
    p) python=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || usage
case $size in *[!0-9]* | 0 | "") echo "-s wants whole MiB, not $size" >&2; exit 2 ;; esac
out=$1
if [ -d "$out" ] && [ -n "$(ls -A "$out")" ]; then
  echo "$out is not empty: give a new folder" >&2
  exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/data" "$work/wheels"

list="$work/list" # what goes in, in order
echo "$data" | while IFS= read -r folder; do
  [ -n "$folder" ] || continue
  found=$(find -L "$folder" -maxdepth 1 -type f \( -name '*.npz' -o -name '*.pth' \) | sort)
  [ -n "$found" ] || { echo "$folder has no .npz and no .pth" >&2; exit 1; }
  echo "$found" | while IFS= read -r file; do
    cp -L "$file" "$work/data/"
    echo "data/$(basename "$file")" >>"$list"
  done
done
echo "$given" | while IFS= read -r folder; do
  [ -n "$folder" ] || continue
  for wheel in "$folder"/*.whl; do
    [ -e "$wheel" ] || { echo "$folder has no wheels" >&2; exit 1; }
    cp "$wheel" "$work/wheels/"
    echo "wheels/$(basename "$wheel")" >>"$list"
  done
done
if [ -z "$given" ] || [ -n "$fetch" ]; then
  # Wheels of any glibc that a machine of today has: pip takes no more than what it is told.
  platforms="--platform manylinux1_x86_64 --platform manylinux2014_x86_64"
  for minor in 17 24 26 27 28 31 34 35; do
    platforms="$platforms --platform manylinux_2_${minor}_x86_64"
  done
  for name in $([ -n "$given" ] || echo "$BASE") $wanted; do
    mkdir -p "$work/new"
    # shellcheck disable=SC2086 # one word an option
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
      --only-binary=:all: --python-version "$python" --implementation cp $platforms \
      --constraint "$here/constraints.txt" --dest "$work/new" "$name"
    for wheel in "$work/new"/*.whl; do
      echo "wheels/$(basename "$wheel")" >>"$list"
      mv "$wheel" "$work/wheels/"
    done
  done
fi
[ -s "$list" ] || { echo "there is nothing to pack: give -d, -w or -W" >&2; exit 1; }

(cd "$work" && awk '!seen[$0]++' list >order &&
  tar --create --file - --files-from order --owner 0 --group 0 --mtime @0) |
  split --bytes "${size}M" --numeric-suffixes --suffix-length 3 - "$out/part-"
(cd "$out" && sha256sum part-* >SHA256SUMS)
cat >"$out/README" <<'END'
sha256sum --check --ignore-missing SHA256SUMS
cat part-* | tar --extract --file - --directory DIR
python benchmarks/on_gpu.py --data DIR/data --wheels DIR/wheels --out FOLDER
END
echo "$(wc -l <"$work/order") files in $(find "$out" -name 'part-*' | wc -l) parts: $out/README says how to go on"
