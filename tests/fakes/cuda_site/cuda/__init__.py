"""A regular package, so that it wins over every installed `cuda`, whose other parts stay there."""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
