"""Tells twistd about ``twistd xapsd``."""

from twisted.application.service import ServiceMaker

xapsd = ServiceMaker("xapsd", "xaps.tap", "Push mail to iPhones from Dovecot and Cyrus.", "xapsd")
