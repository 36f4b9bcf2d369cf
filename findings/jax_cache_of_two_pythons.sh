#!/usr/bin/env bash
# jax 0.12.0.1: Python 3.14 and an older Python that share a persistent compilation cache never read each other's programs, nor replace them.
#
# One would guess: either the key of an entry tells the two apart, or an entry that cannot be read is written anew.
# What happens: 3.14 compresses entries with the standard library's zstd, 3.12 and 3.13 (without the package zstandard) with zlib, but the key
# says zlib for both. So the one that comes second finds the other's entry, warns that it cannot be read, compiles, and does not write, because
# an entry of that key exists. It compiles and warns again at every start, for as long as the folder is kept.
# So: a cache folder that is shared (a cluster's home, CI, JAX_COMPILATION_CACHE_DIR) has to be one for each minor version of Python.
#
# Usage: findings/jax_cache_of_two_pythons.sh PYTHON PYTHON314     (3.12 or 3.13, and 3.14 or newer)
# Fails once what is written above no longer happens.
set -euo pipefail
old=${1:?a Python 3.12 or 3.13} new=${2:?a Python 3.14 or newer}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/compile.py" <<'PYTHON'
import sys
import warnings

import jax

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.jit(lambda x: x @ x + 1.0)(jax.numpy.ones((64, 64))).block_until_ready()
unreadable = sum("Error reading persistent compilation cache entry" in str(w.message) for w in caught)
hits = sum(name == "/jax/compilation_cache/cache_hits" for name in events)
print(f"{sys.version_info.major}.{sys.version_info.minor} {hits} {unreadable}")
PYTHON
for python in "$old" "$new"; do
  name=$("$python" -c 'import sys; print(sys.version_info.minor)')
  "$python" -m venv "$folder/venv$name"
  "$folder/venv$name/bin/pip" install -q jax==0.12.0.1 jaxlib==0.12.0.1
done
older=$("$old" -c 'import sys; print(sys.version_info.minor)') newer=$("$new" -c 'import sys; print(sys.version_info.minor)')
run() { JAX_PLATFORMS=cpu "$folder/venv$1/bin/python" "$folder/compile.py" "$folder/cache"; }
run "$older" > "$folder/first"
run "$older" > "$folder/own"
run "$newer" > "$folder/other"
run "$newer" > "$folder/again"
echo "Python, programs read from the cache, programs that could not be read:"
cat "$folder/first" "$folder/own" "$folder/other" "$folder/again"
read -r _ hits unreadable < "$folder/own"
[ "$hits" -gt 0 ] && [ "$unreadable" -eq 0 ] || { echo "the older Python does not read its own programs"; exit 1; }
for name in other again; do
  read -r _ hits unreadable < "$folder/$name"
  [ "$unreadable" -gt 0 ] || { echo "the newer Python reads the older one's programs, or keeps its own"; exit 1; }
done
