"""One page with all styles: pictures inside of it, nothing fetched, for bright and dark rooms."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

# Nothing is let in from outside, whatever a style's own file may say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --back: #f6f5f2; --card: #fff; --ink: #1d1d1f; --soft: #5c5c63;
  --line: #dcdad4; --code: #efede7; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --back: #141416; --card: #1f1f23; --ink: #f0eff2;
  --soft: #aaa9b2; --line: #36363c; --code: #2a2a30; --link: #8ec2ff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
header p { margin: 0 0 1.5rem; color: var(--soft); max-width: 60ch; }
ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  overflow: hidden; display: flex; flex-direction: column; }
img, .none { display: block; width: 100%; aspect-ratio: 16 / 9; object-fit: cover; }
.none { display: grid; place-items: center; color: var(--soft); background: var(--code); }
.text { padding: .9rem 1rem 1rem; display: flex; flex-direction: column; flex: 1; gap: .4rem; }
h2 { font-size: 1.1rem; margin: 0; }
h2 small { color: var(--soft); font-weight: normal; margin-left: .4em; }
.text p { margin: 0; color: var(--soft); flex: 1; overflow-wrap: anywhere; }
.command { display: flex; gap: .5rem; align-items: stretch; margin-top: .3rem; }
code { flex: 1; min-width: 0; background: var(--code); border-radius: .4rem; padding: .4rem .6rem;
  font: .82rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; user-select: all; }
button { font: inherit; font-size: .85rem; color: var(--link); background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: .4rem; padding: 0 .7rem; }
button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
"""
# Without it, or where a page from a file may not use the clipboard, the command gets selected.
_SCRIPT = """
for (const button of document.querySelectorAll("button")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
"""


@dataclass(frozen=True, slots=True)
class Card:
    """One style on the page.

    Attributes:
        name: what `--style` takes.
        title, description: of the style.
        picture: bytes of a JPEG, or None.
        alt: what the picture shows.
        is_own: it is the user's own.
    """

    name: str
    title: str
    description: str
    picture: bytes | None
    alt: str
    is_own: bool = False


def style_page(cards: Sequence[Card], *, photo: str, told: str) -> str:
    """The page as HTML that needs nothing else.

    Args:
        cards: in their order.
        photo: the picture's name in the commands.
        told: a sentence about the pictures.
    """
    items = "\n".join(_item(card, photo) for card in cards)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">
<title>Styles of osp</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Styles of osp</h1>
<p>{html.escape(told)}</p>
</header>
<main>
<ul>
{items}
</ul>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _item(card: Card, photo: str) -> str:
    command = f"osp stylize {shlex.quote(photo)} --style {shlex.quote(card.name)}"
    picture = '<div class="none" aria-hidden="true">no picture</div>'
    if card.picture is not None:
        data = base64.b64encode(card.picture).decode()
        alt = html.escape(card.alt)
        picture = f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'
    name = html.escape(card.name)
    own = ", own" if card.is_own else ""
    return f"""<li id="{name}">
{picture}
<div class="text">
<h2>{html.escape(card.title)} <small>{name}{own}</small></h2>
<p>{html.escape(card.description)}</p>
<div class="command"><code>{html.escape(command)}</code>\
<button type="button" hidden aria-label="Copy the command for {name}">Copy</button></div>
</div>
</li>"""
