"""Whether a chat template is Jinja, by Jinja's own parser as transformers sets it up."""

from __future__ import annotations

from typing import Any

__all__ = ["template_fault"]


def template_fault(text: str) -> str:
    """What is wrong with a chat template; "" where nothing is, or where Jinja isn't installed to tell."""
    try:
        import jinja2
        from jinja2 import meta
        from jinja2.ext import Extension
    except ImportError:
        return ""

    class Generation(Extension):
        """transformers' own tag: `{% generation %}` marks the assistant's words."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    try:
        parsed = environment.parse(text)
        environment.compile(environment.parse(text))
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    if "messages" not in meta.find_undeclared_variables(parsed):
        return "it never reads `messages`, so every conversation would become the same text"
    return ""
