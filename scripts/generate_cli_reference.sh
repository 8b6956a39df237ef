#!/usr/bin/env bash
# Write docs/cli.md from the commands' own help.
set -euo pipefail
cd "$(dirname "$0")/.."
typer cli.main utils docs --name kaem --title "Command reference" --output docs/cli.md
