"""The provider's side of Apple's push service; it never knows users, mailboxes or the registry."""
