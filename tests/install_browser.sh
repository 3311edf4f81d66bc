#!/bin/sh
# Make sure that there is a browser for the tests of `qcc report`: one that is installed, else Debian's package.
set -eu

if [ "${QCC_NO_BROWSER:-}" = 1 ]; then
  echo "QCC_NO_BROWSER=1: the browser tests will be skipped"
  exit 0
fi

# The same names as in tests/browser.py.
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$name" >/dev/null 2>&1 && exit 0
done
for application in "Google Chrome" Chromium; do
  [ -x "/Applications/$application.app/Contents/MacOS/$application" ] && exit 0
done

refuse() {
  echo "the tests of \`qcc report\` need a browser, and $1" >&2
  echo "  try: install Chromium or Google Chrome so that it is on PATH, or set QCC_NO_BROWSER=1 to skip these tests" >&2
  exit 1
}

command -v apt-get >/dev/null 2>&1 || refuse "none was found"
as_root=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null 2>&1 || refuse "installing Debian's takes root"
  as_root=sudo
fi
echo "installing chromium for the tests of \`qcc report\`"
$as_root apt-get update -qq || refuse "apt-get update failed"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null ||
  refuse "apt-get install chromium failed"
