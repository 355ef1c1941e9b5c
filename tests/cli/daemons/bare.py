"""A daemon whose package is not installed."""

import a_package_that_is_not_installed  # type: ignore[import-not-found]

main = a_package_that_is_not_installed.main
