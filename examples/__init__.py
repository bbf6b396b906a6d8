"""The gateway as the environment configures it: ``uvicorn examples:app``.

The model ``echo`` is always there and costs nothing; providers join as soon as their key is set.
"""

from asgi_llm_gateway import create_app

app = create_app()
