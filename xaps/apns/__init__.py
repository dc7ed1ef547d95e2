"""The provider's side of Apple's push service."""
