"""The documentation page: a folder of files that Nginx serves at `/docs`, complete without any other host.

`openapi.json` in it is the merged document (3.1) for programs; the page itself reads `openapi-3.0.json`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path

import aiohttp

from gateway.openapi import TITLE, Json
from gateway.openapi30 import downgrade

SCHEMA_PATH = "/schema/openapi.json"
"""Where each service serves its own document."""

FETCH_TIMEOUT_S = 10
BUNDLE_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-16x16.png", "favicon-32x32.png")

# Paths from the root: the page is the same at /docs and at /docs/.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" sizes="32x32" href="/docs/favicon-32x32.png">
<link rel="icon" type="image/png" sizes="16x16" href="/docs/favicon-16x16.png">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>The document itself is at <a href="/docs/openapi.json">/docs/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/page.js"></script>
</body>
</html>
"""

# validatorUrl null: else the page would show the document to a validator on the internet.
_SCRIPT = """window.ui = SwaggerUIBundle({
  url: "/docs/openapi-3.0.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
"""


class DocumentMissing(Exception):
    """A service did not give its document: the message names the service and why."""


def write(folder: Path, document: Json) -> None:
    """Writes the page for `document` into `folder`, made if needed; each file is replaced at once.

    Costs a copy of 1.2 MB the first time; later only the documents and the page are written again.
    """
    from swagger_ui_bundle import swagger_ui_path

    folder.mkdir(parents=True, exist_ok=True)
    for name in BUNDLE_FILES:
        source, target = Path(str(swagger_ui_path)) / name, folder / name
        if not target.exists() or target.stat().st_size != source.stat().st_size:
            fresh = target.with_name(f"{name}.new")
            shutil.copyfile(source, fresh)
            fresh.replace(target)
    texts = {
        "openapi.json": json.dumps(document, ensure_ascii=False),
        "openapi-3.0.json": json.dumps(downgrade(document), ensure_ascii=False),
        "page.js": _SCRIPT,
        "index.html": _PAGE.format(title=escape(TITLE)),
    }
    for name, text in texts.items():
        fresh = folder / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / name)


async def fetch_documents(urls: Mapping[str, str], *, timeout_s: float = FETCH_TIMEOUT_S) -> dict[str, Json]:
    """Asks each service in `urls` (name to base URL) for its document, all at the same time.

    Raises DocumentMissing for the first service that does not answer with one within `timeout_s`.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as http:

        async def one(service: str, url: str) -> tuple[str, Json]:
            address = url.rstrip("/") + SCHEMA_PATH
            try:
                async with http.get(address) as answer:
                    answer.raise_for_status()
                    # Litestar's media type has a suffix of its own, so the type is not checked.
                    return service, await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise DocumentMissing(f"{service} gave no API document at {address}: {error!r}") from error

        # All are awaited before the first failure is raised: none may outlive the session.
        answers = await asyncio.gather(*(one(*item) for item in urls.items()), return_exceptions=True)
    found: dict[str, Json] = {}
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        service, document = answer
        found[service] = document
    return found
