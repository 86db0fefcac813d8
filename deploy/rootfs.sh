#!/bin/sh
# Makes the root file system of the image: Python, Tower, the libraries that they load, nothing else.
#
#   deploy/rootfs.sh ROOT [PYTHON]
#
# Run from the checkout, by the Dockerfile and by the tests, so that both have the same steps. No
# shell, no package manager and no pip is in ROOT. Every package comes with the hash that
# requirements.lock has for it.
set -eu

root=${1:?usage: deploy/rootfs.sh ROOT [PYTHON]}
python=${2:-python3}
mkdir "$root" # an old one would leave files of another version
root=$(cd "$root" && pwd)

version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
packages=$root/usr/local/lib/$version/site-packages

# 1. The interpreter and its library, without what a server never imports.
mkdir -p "$root/usr/local/bin" "$root/usr/local/lib"
cp "$(readlink -f "$prefix/bin/$version")" "$root/usr/local/bin/$version"
ln -s "$version" "$root/usr/local/bin/python3"
(cd "$prefix/lib" && tar -cf - \
  --exclude=__pycache__ --exclude=site-packages --exclude='config-*' --exclude=test --exclude=tests \
  --exclude=idlelib --exclude=tkinter --exclude=turtledemo --exclude=turtle.py --exclude=ensurepip \
  --exclude=lib2to3 --exclude=pydoc_data --exclude='_test*' --exclude='_tkinter*' --exclude='_ctypes_test*' \
  --exclude='_xx*' --exclude='xx*' "$version") | tar -xf - -C "$root/usr/local/lib"
mkdir -p "$packages"

# 2. Tower and exactly the packages that requirements.lock names.
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes \
  --target "$packages" --requirement requirements.lock
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" .
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
  --target "$packages" --upgrade "$wheels"/*.whl
rm -rf "$packages/bin"
# What our programs never load: build tools, the official client's models and calls (120 MB; we use its
# ApiClient, in plain JSON), highlighting of programming languages, tests and sources that packages ship.
(cd "$packages" && rm -rf hatchling editables trove_classifiers \
  kubernetes/client/models/v* kubernetes/client/api/*_api.py \
  kubernetes/aio/client/models/v* kubernetes/aio/client/api/*_api.py)
find "$packages/pygments/lexers" -name '*.py' ! -name __init__.py ! -name _mapping.py ! -name special.py -delete
find "$packages" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
find "$packages" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' \) -delete

# 3. The three programs. -I: neither the environment nor the working directory adds code.
for program in tower:tower_server.admin_cli tower-server:tower_server.cli tower-agent:tower_agent.cli; do
  file=$root/usr/local/bin/${program%%:*}
  printf '#!/usr/local/bin/python3 -I\nimport sys\nfrom %s import main\nsys.exit(main())\n' "${program##*:}" > "$file"
  chmod 755 "$file"
done
# The root is read-only where it runs: compiled here, once, or never.
"$root/usr/local/bin/$version" -I -m compileall -q --invalidation-mode unchecked-hash "$root/usr/local/lib/$version" > "$wheels/compile.log" 2>&1 ||
  { cat "$wheels/compile.log"; exit 1; }

# 4. Every shared library that something of the above loads, and the loader.
{ echo "$root/usr/local/bin/$version"; find "$root/usr/local/lib" -name '*.so*' -type f; } |
  xargs ldd 2>/dev/null | sed -n 's/^[[:space:]]*\(.* => \)\{0,1\}\(\/[^ ]*\) (0x.*/\2/p' | sort -u |
  while read -r library; do
    case $library in "$root"/*) continue ;; esac
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done

if command -v strip > /dev/null; then # symbols are a third of it
  find "$root" -type f \( -name '*.so*' -o -path "*/bin/$version" \) -exec strip --strip-unneeded {} +
fi

# 5. What programs expect of a system.
mkdir -p "$root/etc/ssl/certs" "$root/tmp" "$root/proc" "$root/dev" "$root/var/run" "$root/home/nonroot"
chmod 1777 "$root/tmp"
printf 'root:x:0:0:root:/:/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/nologin\n' > "$root/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
fi
du -sm "$root" | sed 's/\t.*/ MB/'
