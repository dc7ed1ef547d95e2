# make try    shows a notice become a push          make test   runs the test suite
#             (TESTS=tests.push for a part of it, JOBS=1 for one test after the other, CI=yes for all
#             of hypothesis' examples, and a failure where what a test needs is not installed)
# make check  ruff, mypy and the suite on both sets of dependencies (Debian 12's and PyPI's newest)
# make bench  measures, beside bars to be held     make clean  removes what these made
#             (python -m benchmarks --rows cpu-64,unknown --runs 1 for a part of its table;
#             BENCH_PYTHON=/usr/bin/python3 for what Debian's users run, whose Python is a quarter
#             faster than one that was compiled without a profile)
# make soak   ten minutes of faults and SIGKILL     make soak-short  the same in one minute
# make soak-cluster   five minutes of three daemons on one PostgreSQL, each of which dies now and then,
#             and so does the network between them (soak-cluster-short: one minute)
# make siege  ten minutes of hostile peers          make siege-short  the same in one minute
# make fuzz   a million inputs for each parser (RUNS=1000 for fewer)
# make deb    builds dist/xapsd_VERSION_all.deb and dist/dovecot-xaps_VERSION_ARCHITECTURE.deb
# make test-deb   builds it, asks lintian, installs it, runs it and purges it (root, Debian 12 or 13)
# make install-docs   the manual pages and the completion for bash, to /usr/local (or PREFIX), for an
#             installation from source: PYTHON=/opt/xapsd/bin/python
# make trixie     the suite, make try and make test-deb in a Debian 13 (root, Debian)

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
DEBIAN_PYTHON ?= /usr/bin/python3
BENCH_PYTHON ?= $(BIN)/python
TRIAL = -m twisted.trial
TESTS ?= tests
# More than there are processors: many tests wait for a process or a deadline.
JOBS ?= 6
RUNS ?= 1000000
PREFIX ?= /usr/local
# The tests start hundreds of processes of ours: compiled again in each, they take a tenth longer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: try test lint types test-debian check bench soak soak-short soak-cluster soak-cluster-short siege siege-short fuzz install-docs \
    deb test-deb trixie clean

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

try: $(VENV)/ready
	$(BIN)/python -m tests.try_it

test: $(VENV)/ready
	$(BIN)/python $(TRIAL) -j$(JOBS) $(TESTS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

test-debian:
	$(DEBIAN_PYTHON) $(TRIAL) -j$(JOBS) --temp-directory=_trial_temp_debian $(TESTS)

check: lint types test test-debian

bench: $(VENV)/ready
	failed=; for part in "" .delays .hostile .registrations .cluster; do \
		$(BENCH_PYTHON) -m benchmarks$$part || failed=yes; \
	done; test -z "$$failed"

soak: $(VENV)/ready
	$(BIN)/python -m benchmarks.soak --seconds 600

soak-short: $(VENV)/ready
	$(BIN)/python -m benchmarks.soak --seconds 60

soak-cluster: $(VENV)/ready
	$(BIN)/python -m benchmarks.soak_cluster --seconds 300

soak-cluster-short: $(VENV)/ready
	$(BIN)/python -m benchmarks.soak_cluster --seconds 60

siege: $(VENV)/ready
	$(BIN)/python -m benchmarks.siege --seconds 600

siege-short: $(VENV)/ready
	$(BIN)/python -m benchmarks.siege --seconds 60

fuzz: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	for target in lines http imap session configuration; do \
		$(BIN)/python -m benchmarks.fuzz $$target --runs $(RUNS) || exit 1; \
	done

# The Debian package takes them from here, too.
install-docs:
	set -e; made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; share='$(DESTDIR)$(PREFIX)/share'; \
	$(PYTHON) debian/manpages.py "$$made" $${SOURCE_DATE_EPOCH:-$$(date +%s)}; \
	$(PYTHON) -c 'from xaps.ctl.main import xapsctl; xapsctl()' completion >"$$made/xapsctl"; \
	install -D -m 644 -t "$$share/man/man5" "$$made"/*.5; \
	install -D -m 644 -t "$$share/man/man8" "$$made"/*.8; \
	install -D -m 644 -t "$$share/bash-completion/completions" "$$made/xapsctl"

# Debian's tools leave files all over the tree, so they get a copy. Their PATH is Debian's own.
SOURCE = dist/source
deb: export PATH = /usr/sbin:/usr/bin:/sbin:/bin
deb:
	rm -rf $(SOURCE) dist/xaps_* dist/xapsd_* dist/dovecot-xaps*
	mkdir -p $(SOURCE)
	tar -c --exclude-vcs --exclude-caches --exclude='./.*' --exclude=./dist --exclude=./build \
	    --exclude='./_trial_temp*' --exclude='*.egg-info' --exclude=node_modules --exclude=__pycache__ . | tar -x -C $(SOURCE)
	version=$$(dpkg-parsechangelog --show-field Version) && \
	tar -cJ -f dist/xaps_$${version%-*}.orig.tar.xz --sort=name --owner=0 --group=0 --numeric-owner \
	    --mtime=@$$(dpkg-parsechangelog --show-field Timestamp) --exclude=./debian -C $(SOURCE) \
	    --transform="s,^\.,xaps-$${version%-*}," .
	cd $(SOURCE) && dpkg-buildpackage --unsigned-source --unsigned-changes
	rm -rf $(SOURCE)
	ls dist/*.deb

test-deb: deb
	lintian --allow-root --fail-on error,warning dist/xaps_*.changes
	$(DEBIAN_PYTHON) -m tests.package.installed dist/xapsd_*_all.deb dist/dovecot-xaps_*.deb

# tests/trixie says where that Debian is, and how it is made.
trixie:
	sh tests/trixie make test-debian
	sh tests/trixie python3 -m tests.try_it
	sh tests/trixie make test-deb

clean:
	rm -rf $(VENV) tests/axe/node_modules build dist *.egg-info _trial_temp* _fuzz .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache
