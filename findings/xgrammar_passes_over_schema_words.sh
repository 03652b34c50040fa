#!/usr/bin/env bash
# xgrammar 0.2.9. Run 2026-11-29.
#
# compile_json_schema takes schemas with uniqueItems, not, an allOf that narrows, and lookaheads in a pattern, and makes a grammar
# that lets through what they forbid. The first two are not spoken of at all. An answer that was "constrained by the schema" can
# fail the schema's own validator.
# Output seen:
#   uniqueItems: [1, 1] let through; jsonschema refuses it
#   not: "a" let through; jsonschema refuses it
#   allOf: 1 let through; jsonschema refuses it
#   pattern: "b" let through; jsonschema refuses it
# Exits 1 when one of them is refused, or compiling fails.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "xgrammar==0.2.9" "jsonschema==4.25.1"
cat > "$at/run.py" <<'EOF'
import json

import jsonschema
import xgrammar as xgr

letters = [chr(i) for i in range(32, 127)] + ["<end>"]
info = xgr.TokenizerInfo(letters, stop_token_ids=[len(letters) - 1])
compiler = xgr.GrammarCompiler(info)
CASES = {
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]"),
    "not": ({"not": {"type": "string"}}, '"a"'),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "1"),
    "pattern": ({"type": "string", "pattern": "(?=a)b"}, '"b"'),
}
through = 0
for name, (schema, text) in CASES.items():
    matcher = xgr.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    taken = matcher.accept_string(text)
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    through += taken and not valid
    print(f"{name}: {text} {'let through' if taken else 'refused'}; jsonschema {'takes' if valid else 'refuses'} it")
raise SystemExit(0 if through == len(CASES) else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py" 2> "$at/log" || { cat "$at/log"; exit 1; }
