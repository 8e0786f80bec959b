#!/usr/bin/env python3
"""Compares llmctl's chat templates with transformers' Jinja on random conversations and random expressions.

    chat_test.py [--tool build/dev/tests/llmctl_text_tool] [--seed N] [--count N] [--templates FOLDER]

Every template of tests/golden/chat, and every *.jinja of FOLDER, renders COUNT random conversations; the snippets there and random expressions
made of their parts render random values. Texts must be equal, and what one refuses the other must refuse.
"""
import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys

ATOMS = ["1", "0", "-3", "2.5", "'a'", "''", "'a b'", "'\\n x '", "'é日'", "none", "true", "false", "x", "m", "m.role", "m['content']", "items", "items[0]", "items[-1]", "words", "words[1]",
         "table", "table.k", "table['z']", "[1, 'b']", "(2, 3)", "{'q': 1}", "messages", "messages | length", "words | first"]
BINARY = ["+", "-", "*", "//", "%", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or", "/"]
SUFFIX = [" | trim", " | upper", " | lower", " | length", " | string", " | default('d')", " | default('d', true)", " | list", " | join(', ')", " | first", " | last", " | reverse | list", " | sort",
          " | unique | list", " | tojson", " | replace('a', 'zz')", " | int", " | capitalize", " | title", " | map('string') | list", " | select('string') | list", " | max", " | min", " | items | list",
          " is defined", " is none", " is string", " is mapping", " is iterable", " is sequence", " is number", " is odd", " is eq 1", " is true", "[0]", "[1:]", "[::-1]", "[:2]", ".strip()", ".split()",
          ".split('a')", ".upper()", ".startswith('a')", ".get('k')", ".replace('a', 'b')", ".items() | list", ".k", "['k']", ".rstrip('\\n ')", ".find('b')", ".count('a')", ".title()", ".splitlines()"]


def expression(rng, depth):
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(ATOMS)
    kind = rng.random()
    if kind < 0.4:
        inner = expression(rng, depth - 1)
        return (inner if rng.random() < 0.5 else f"({inner})") + rng.choice(SUFFIX)
    if kind < 0.7:
        return f"{expression(rng, depth - 1)} {rng.choice(BINARY)} {expression(rng, depth - 1)}"
    if kind < 0.8:
        return f"({expression(rng, depth - 1)} if {expression(rng, depth - 1)} else {expression(rng, depth - 1)})"
    if kind < 0.9:
        return f"not {expression(rng, depth - 1)}"
    return f"[{expression(rng, depth - 1)}, {expression(rng, depth - 1)}]"


def block(rng, depth):
    """A template of nested tags with white space everywhere."""
    space = lambda: rng.choice(["", "", " ", "  ", "\n", "\n  ", " \n", "\t"])
    sign = lambda: rng.choice(["", "", "", "-", "+"])
    tag = lambda text: "{%" + sign() + " " + text + " " + rng.choice(["", "", "-", "+"]) + "%}"
    out = []
    for _ in range(rng.randrange(1, 4)):
        out.append(space() + rng.choice(["a", "", "b c", "}"]) + space())
        kind = rng.random()
        if kind < 0.3 or depth == 0:
            out.append("{{" + rng.choice(["", "", "-"]) + " " + expression(rng, 1) + " " + rng.choice(["", "", "-"]) + "}}")
        elif kind < 0.5:
            out += [tag("if " + expression(rng, 1)), block(rng, depth - 1), tag("else"), block(rng, depth - 1), tag("endif")]
        elif kind < 0.7:
            out += [tag("for m in " + rng.choice(["messages", "items", "words", "table", "x", "[1, 2]"])), "{{ loop.index }}", block(rng, depth - 1), tag("endfor")]
        elif kind < 0.8:
            out.append(tag("set x = " + expression(rng, 1)))
        elif kind < 0.9:
            out.append("{#" + sign() + " c " + rng.choice(["", "-", "+"]) + "#}")
        else:
            out += [tag("set x"), block(rng, depth - 1), tag("endset")]
        out.append(space())
    return "".join(out)


def main():
    source = os.environ.get("LLMCTL_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    binary = os.environ.get("LLMCTL_BINARY", os.path.join(source, "build/dev/cli/llmctl"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default=os.path.join(os.path.dirname(binary), "..", "tests", "llmctl_text_tool"), help="tests/interop/text_tool.cc, built")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--count", type=int, default=60, help="conversations for each template")
    parser.add_argument("--templates", help="a folder of further templates, *.jinja, such as published models have")
    arguments = parser.parse_args()
    for module in ("transformers", "jinja2"):
        if importlib.util.find_spec(module) is None:
            print(f"SKIPPED: no Python package {module}", file=sys.stderr)
            return 0
    sys.path.insert(0, os.path.join(source, "tests", "golden", "chat"))
    import make_goldens

    print("seed", arguments.seed)
    rng = random.Random(arguments.seed)
    cases = []
    templates = list(make_goldens.templates())
    own = {name for name, _ in templates} | {"snippet"}
    for file in sorted(os.listdir(arguments.templates) if arguments.templates else []):
        with open(os.path.join(arguments.templates, file), encoding="utf-8", newline="") as f:
            templates.append((file, f.read()))
    for name, template in templates:
        for messages in make_goldens.conversations(rng, arguments.count):
            cases.append((name, template, make_goldens.variables(messages, rng.random() < 0.5)))
    values = {"messages": [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": "a yo"}], "m": {"role": "user", "content": "ab\nc"}, "items": [3, 1, 2],
              "words": ["b", "Ab", "é"], "table": {"k": "v", "z": [1]}, "tools": None}
    for snippet in make_goldens.SNIPPETS:
        cases.append(("snippet", snippet, values))
    for _ in range(arguments.count * 50):
        cases.append(("expression", "{{ " + expression(rng, 3) + " }}", values))
    for _ in range(arguments.count * 10):
        cases.append(("block", block(rng, 3), values))

    done = subprocess.run([arguments.tool, "chat"], input=json.dumps([{"template": t, "variables": v} for _, t, v in cases]).encode(),
                          check=True, stdout=subprocess.PIPE)
    ours = json.loads(done.stdout)

    wrong, refused, counts = [], [], {}
    for (name, template, variables), text in zip(cases, ours):
        kind, expected = make_goldens.expected(template, variables)
        is_error = text.startswith("error: ")
        counts[name] = counts.get(name, 0) + 1
        if kind == "text" and is_error and "is not supported" in text and name not in own:
            refused.append((name if name.endswith(".jinja") else template, text))  # never silently wrong, and said by name
        elif (kind == "error") != is_error or (kind == "text" and text != expected):
            wrong.append((name, template, variables, text, expected))
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"{len(cases) - len(wrong) - len(refused)} of {len(cases)} equal, {len(refused)} refused by name, {len(wrong)} different")
    for template, text in sorted(set(refused))[:20 if arguments.templates else 3]:
        print("  refused", ascii(template)[:200], "->", text[:200])
    for name, template, variables, text, expected in wrong[:10]:
        print("  ", name, ascii(template)[:400] if name in ("snippet", "expression", "block") else ascii(variables["messages"])[:300])
        print("     llmctl", ascii(text)[:300])
        print("     jinja2", ascii(expected)[:300])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
