#!/usr/bin/env python3
"""Writes golden.json: what transformers' Jinja makes of the templates beside it and of many small snippets.

    make_goldens.py

Needs transformers (5) and jinja2. A case is {"template": text, "variables": {...}} with either "text" or "error": true.
"""
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = ["Hello", "  spaces  ", "line\nbreak\n", "\ttab", "quote's", 'a "b"', "<|im_end|>", "</s>", "[INST]", "{{ x }}", "{% if %}", "日本語", "\U0001f600",
         "e\u0301", "", " ", "\n", "<think>\nhm\n</think>\n\nyes", "\\n", "100%", "\u00a0x\u3000", "Äß", "a</think>b", "\x1c", "\r\n"]


def message(role, content):
    return {"role": role, "content": content}


def conversations(rng, count):
    """Ordinary ones, and such as templates refuse."""
    out = [[message("user", "Hello")], [message("system", "Be brief."), message("user", " Hi \n"), message("assistant", " Yes? "), message("user", "Bye")],
           [message("user", "a"), message("user", "b")], [message("assistant", "x")], [message("system", "only")]]
    for _ in range(count):
        turns = [message("system", rng.choice(WORDS))] if rng.random() < 0.4 else []
        for i in range(rng.randrange(1, 6)):
            role = ["user", "assistant"][i % 2] if rng.random() < 0.9 else rng.choice(["user", "assistant", "system", "tool"])
            turns.append(message(role, " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 5)))))
        out.append(turns)
    return out


def templates():
    folder = os.path.join(HERE, "templates")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as f:
            yield name, f.read()


def variables(messages, add_generation_prompt):
    return {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, "date_string": "26 Jul 2024", **SPECIALS}


# Each stands for a rule of white space, precedence, scoping or of a filter, test or method.
SNIPPETS = [
    # white space and tags
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}  \n  b\n  {% endif %}\nc", "  {{ 1 }}  \n  {{ 2 }}", "a {%- if true -%} b {%- endif -%} c",
    "a\n  {%+ if true %}\nb{% endif +%}\nc", "  {# c #}\nx", "x {#- c -#} y", "{# a #}\n{# b #}\nz", "\n\n{% if true %}x{% endif %}\n\n", "a\r\nb\r{% if 1 %}\r\nc{% endif %}\r\n",
    "{% raw %}{{ x }}{% endraw %}\ny", "a {%- raw -%} {{ b }} {%- endraw -%} c", "\u00a0\u3000{%- if 1 %} x{% endif %}", "x\n\u2003{% if 1 %}y{% endif %}", "{{ 'a' -}}\n\n{{- 'b' }}",
    "  {%- set x = 1 %}\n{{ x }}\n", "{{ '{% x %}' }}{{ \"}}\" }}", "{{ {'a': {'b': 1}}.a.b }}", "{{\n1\n+\n2\n}}", "{% if 1 %}\n\n\n{% endif %}x", "{{ 'a' }}\n{% set x %}\n b\n{% endset %}[{{ x }}]",
    "x{% if true %}y{% endif %}\n\n", "\t{% if 1 %}\t\nz{% endif %}\t{# #}\t\nq",
    # literals
    r"{{ 'a\n\t\\\'\"\x41\u00e9\101\q' }}", r'{{ "it\'s" }}', "{{ 'a' 'b' }}", "{{ 1_000 }} {{ 1.5e3 }} {{ 1e20 }} {{ 0.1 }} {{ 1e-7 }} {{ 100000000000000000.0 }} {{ 1.0 }}",
    "{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}", "{{ [1, 'a', none, [2.0]] }} {{ (1,) }} {{ () }} {{ {'k': 'v'} }}", "{{ 'x'.y is defined }}",
    # operators
    "{{ 1 + 2 * 3 - 4 // 3 % 2 }}", "{{ 7 // -2 }} {{ 7 % -2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ -2 ** 2 }}", "{{ 1 ~ 'a' ~ none ~ 2.5 }}", "{{ 'ab' * 3 }} {{ 2 * 'x' }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' != 'b' }}", "{{ not true or true and false }}", "{{ 'b' in 'abc' }} {{ 1 in [1] }} {{ 'k' in {'k': 1} }} {{ 3 not in [1] }}",
    "{{ 'a' if false }}|{{ 'a' if false else 'b' if false else 'c' }}", "{{ none or 'x' }} {{ '' and 'y' }} {{ 0 or [] or 'z' }}", "{{ -1 | abs }} {{ (-1) | abs }} {{ +3 }} {{ -(2) }}",
    "{{ [1] + [2] }} {{ (1,) + (2,) }}", "{{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }}", "{{ 1 < 'a' }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ 1 // 0 }}", "{{ x + 'a' }}",
    "{{ 'a' == ['a'] }} {{ [1] == (1,) }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }}", "{{ 5 in 'a' }}", "{{ not x }} {{ x == y }} {{ x == none }} {{ 'a' in x }}",
    "{{ 1 is odd and 2 is even }}", "{{ not 1 is odd }}", "{{ 'x' ~ 1 + 2 }}", "{{ 2 + 3 ~ 'x' }}", "{{ 'a' ~ 'b' | upper }}", "{{ ('a' ~ 'b') | upper }}", "{{ 1 + 2 | string | length }}",
    # subscripts
    "{{ 'héllo'[1] }} {{ 'héllo'[-1] }} {{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ 'abc'[5:] }} {{ 'abc'[-2:] }} {{ 'abcdef'[4:1:-2] }}", "{{ [1,2,3][:-1] }} {{ [1,2,3][10] }} {{ (1,2,3)[::2] }}",
    "{{ {'a': 1}['b'] }}|{{ {'a': 1}.b }}|{{ {'a': 1}['a'] }}", "{{ x.y }}", "{{ x['y'] }}", "{{ messages[0].content.missing }}|{{ messages[0]['nope'] is defined }}", "{{ messages[-1]['role'] }}",
    "{{ [[1, 2], [3]].1.0 }} {{ [1,2].0 }}", "{{ 'abc'['0'] }}", "{{ [1]['a'] }}", "{{ x[1:] }}", "{{ 'a'[1:none] }}", "{{ [1,2,3][::0] }}",
    # loops and scopes
    "{% for i in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% for i in [] %}x{% else %}empty{% endfor %}", "{% for i in [1,2,3,4] if i is even %}{{ i }}{{ loop.last }}{% endfor %}", "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}-{{ b }} {% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}", "{% for i in [1,2,3,4,5] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in [1,2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% for i in [1,2] %}{% for j in [3,4] %}{{ i }}{{ j }}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}", "{% for c in 'aé' %}<{{ c }}>{% endfor %}", "{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}",
    "{% for i in x %}{{ i }}{% endfor %}none", "{% for i in 5 %}{% endfor %}", "{% for i in none %}{% endfor %}", "{% for i in [1,2,3] %}{{ loop.previtem }}{{ loop.nextitem }},{% endfor %}",
    "{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% if x %}a{% elif 1 %}b{% else %}c{% endif %}", "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "{% set x = 'a' if true else 'b' %}{{ x }}",
    "{% set x.y = 1 %}", "{% set ns = namespace() %}{% set ns.a = [1] %}{{ ns.a }}{{ ns.b is defined }}{{ ns['a'] }}", "{% set loop = 3 %}{{ loop }}", "{{ loop }}|{{ messages | length }}",
    "{% if true %}{% set q = 5 %}{% endif %}{{ q }}", "{% for i in [1] %}{% set q = 5 %}{% endfor %}{{ q }}", "{% set x = 5 %}{% set x = x + 1 %}{{ x }}", "{% for i in [1,2] %}{{ q }}{% set q = i %}{{ q }}{% endfor %}",
    "{% generation %}{% set z = 1 %}{{ z }}{% endgeneration %}{{ z }}", "{% filter upper %}a{{ 'b' }}{% endfilter %}", "{% set x | trim | upper %}  abc {% endset %}[{{ x }}]", "{% for i in [1,2,3][::-1] %}{{ i }}{% endfor %}",
    # macros
    "{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, c='y') }}|{{ m(1, 3) }}|{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% set g = 1 %}{% macro m() %}{{ g }}{% endmacro %}{% set g = 2 %}{{ m() }}", "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro m() %}{% set z = 1 %}{% endmacro %}{{ m() }}{{ z }}",
    "{% macro m(x) %}{{ x | length }}{% endmacro %}{% set r = m('abc') %}{{ r + '!' }}", "{% macro m() %}a{% endmacro %}{{ m is defined }}{{ m is callable }}", "{{ nope() }}", "{{ 'a'() }}", "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(4) }}",
    # filters
    "{{ ' a b ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 5 | trim }}", "{{ 'aBc dE' | upper }} {{ 'aBc dE' | lower }} {{ 'aBc dE' | title }} {{ 'aBc dE' | capitalize }}", "{{ [1, 2] | length }} {{ 'é€' | length }} {{ {'a': 1} | count }} {{ x | length }}",
    "{{ 5 | length }}", "{{ [1, 2] | join(', ') }} {{ 'abc' | join('-') }} {{ [] | join }} {{ messages | join('|', attribute='role') }}", "{{ x | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ none | d('q') }} {{ none | default('q', boolean=true) }}",
    "{{ 'aXbX' | replace('X', 'y') }} {{ 'aXbX' | replace('X', 'y', 1) }} {{ 5 | replace('5', '6') }}", "{{ [3,1,2] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true) }} {{ [1,2] | sort(reverse=true) }}",
    "{{ [{'n': 2}, {'n': 1}] | sort(attribute='n') }}", "{{ [1, 'a'] | sort }}", "{{ [3,1] | first }} {{ [3,1] | last }} {{ 'abc' | first }} {{ 'abc' | last }} {{ [] | first }}|{{ [] | last }}", "{{ [1,2] | reverse | list }} {{ 'abc' | reverse }}",
    "{{ ['a','A','b'] | unique | list }} {{ [1,1,2] | unique | join }}", "{{ [1,5,3] | max }} {{ ['b','A'] | min }} {{ [] | max }}|", "{{ [1,2,3] | sum }} {{ [{'a': 1}] | sum(attribute='a') }}",
    "{{ messages | map(attribute='role') | list }} {{ ['a'] | map('upper') | list }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }} {{ [{}] | map(attribute='z', default='q') | list }}", "{{ ['ax'] | map('replace', 'x', 'y') | list }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', '==', 'user') | map(attribute='content') | list }}", "{{ [1,2,3] | select('odd') | list }} {{ [0,1] | select | list }} {{ [1,2] | reject('even') | list }}",
    "{{ [{'a': 1}, {}] | selectattr('a') | list }} {{ [{'a': 1}, {}] | selectattr('a', 'defined') | list }}", "{{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'a': 1} | items | list }}", "{{ '5' | int + 1 }} {{ 'x' | int }} {{ '3.7' | int }} {{ 2.9 | int }} {{ none | int(7) }}",
    "{{ {'a': [1, 'é\\n\"', none, true, 1.5], 'b': {}} | tojson }}", "{{ {'b': 1, 'a': [1, {}]} | tojson(indent=2) }}", "{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}", "{{ 'é😀\\x7f\\x01' | tojson(ensure_ascii=true) }} {{ 'é\\x7f' | tojson }}",
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }}", "{{ x | tojson }}", "{{ (1, 2) | tojson }} {{ '<a>&' | tojson }}", "{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(1, blank=true) }}|{{ 'a\\n' | indent('> ') }}",
    "{{ 'ab' | list }} {{ {'a': 1} | list }}", "{{ 5 | string + '!' }} {{ none | string }}", "{{ 'a' | safe }}", "{{ [1, [2, [3]]] | string }}", "{{ 'it' | upper | lower | title }}", "{{ ['it\\'s', 'a\"b', 'é', '\\x01', '\u200b'] }}",
    # tests
    "{{ x is defined }} {{ messages is defined }} {{ x is undefined }} {{ none is none }} {{ 1 is none }} {{ tools is none }} {{ tools is not none }}", "{{ 1 is number }} {{ 1.5 is float }} {{ 1 is integer }} {{ true is integer }} {{ true is boolean }} {{ 'a' is string }}",
    "{{ {} is mapping }} {{ [] is mapping }} {{ [] is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is iterable }} {{ 'a' is iterable }} {{ none is iterable }}", "{{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 2 is gt 1 }} {{ 1 is in [1, 2] }} {{ 4 is divisibleby 2 }} {{ 1 is lessthan 2 }}",
    "{{ true is true }} {{ 1 is true }} {{ false is false }} {{ none is sameas none }}", "{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ '1' is lower }} {{ 'aB' is upper }}", "{{ 1 is odd }} {{ 2 is even }}", "{{ x is string }} {{ x is mapping }} {{ x is iterable }}", "{{ x.y is defined }}", "{{ 'a' is odd }}",
    "{{ strftime_now is defined }} {{ raise_exception is defined }} {{ nothing_here is defined }}", "{{ 1 is not none and true }}", "{{ messages[0] is mapping and messages[0].content is string }}", "{{ 'a' is not in ['b'] }}",
    # methods
    "{{ ' ab '.strip() }}|{{ 'xabx'.strip('x') }}|{{ ' a'.lstrip() }}|{{ 'a\\n '.rstrip() }}|{{ '\\x1ca\\u00a0'.strip() }}|{{ 'ab'.strip('ba') }}", "{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ 'a b c'.split(none, 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ''.split() }} {{ ''.split(',') }}",
    "{{ 'a\\nb\\r\\nc\\n'.splitlines() }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('x') }} {{ 'abc'.startswith(('x', 'a')) }}", "{{ 'aB'.upper() }} {{ 'aB'.lower() }} {{ 'a b'.title() }} {{ 'aB c'.capitalize() }}", "{{ 'aab'.replace('a', 'x') }} {{ 'aab'.replace('a', 'x', 1) }} {{ 'ab'.replace('', '-') }}",
    "{{ '-'.join(['a', 'b']) }} {{ 'abcb'.find('b') }} {{ 'é€b'.find('b') }} {{ 'abcb'.rfind('b') }} {{ 'abcb'.count('b') }} {{ 'a'.find('z') }}", "{{ 'a-b'.removeprefix('a-') }} {{ 'a-b'.removesuffix('-b') }} {{ ' '.isspace() }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }}",
    "{{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }} {{ {'a': 1}.keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1}.items() | list }}", "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}", "{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }}",
    "{{ 'abc'.index('z') }}", "{{ x.strip() }}", "{{ none.strip() }}", "{{ [].append(1) }}", "{{ ''.split('') }}", "{{ '-'.join([1]) }}", "{{ messages[0].get('content', '').strip() }}", "{{ 'ΑΒΓ'.lower() }} {{ 'éà'.upper() }} {{ 'ÉA' | lower }}",
    # functions
    "{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }}", "{{ dict(a=1, b='x') }} {{ dict({'a': 1}, b=2) }}", "{{ raise_exception('no') }}", "{% if false %}{{ raise_exception('no') }}{% endif %}ok", "{{ strftime_now('%%') }}", "{{ range(1000000) | length }}", "{{ namespace(a=1).a }}",
]


def compiled(template):
    from transformers.utils import chat_template_utils
    return chat_template_utils._compile_jinja_template(template)


def expected(template, values):
    """("text", t) or ("error", message)."""
    try:
        return "text", compiled(template).render(**values)
    except Exception as error:  # jinja2's, and Python's own from inside a template
        return "error", str(error)


def case(template, values):
    kind, value = expected(template, values)
    return {"template": template, "variables": values, kind: value if kind == "text" else True}


def main():
    rng = random.Random(11)
    cases = []
    for name, template in templates():
        # The templates lie beside this file; the golden file names them.
        for messages in conversations(rng, 3):
            for prompt in (True, False):
                made = case(template, variables(messages, prompt))
                made.update(template=name, variables={"messages": messages, "add_generation_prompt": prompt})
                cases.append(made)
    values = {"messages": [message("user", "hi"), message("assistant", "yo")], "tools": None}
    snippets = [{k: v for k, v in case(snippet, values).items() if k != "variables"} for snippet in SNIPPETS]
    with open(os.path.join(HERE, "golden.json"), "w", encoding="utf-8") as f:
        json.dump({"specials": {**SPECIALS, "date_string": "26 Jul 2024"}, "templates": cases, "snippet_variables": values, "snippets": snippets}, f,
                  ensure_ascii=True, indent=0, separators=(",", ":"))
        f.write("\n")
    print(len(cases), "cases of templates,", len(snippets), "snippets,", sum("error" in s for s in snippets), "of them errors")


if __name__ == "__main__":
    sys.exit(main())
