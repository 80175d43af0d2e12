# make demo        the main job: golden images, 20 virtual machines, 20 containers, a table, nothing left
#                  (VMS=4 CONTAINERS=4 for fewer, KEEP=1 to leave it running, make demo-down to end that)
# make check       what needs no root, under 2 minutes
# make test        everything, under 20 minutes
# make guest       all tests inside the kernel guest, those too that take minutes each
# make crash       a million random crash points of the block cache (POINTS=n for another number)
# make shake       a package's tests while threads are held up by chance (PKG=./disk/blockd, COUNT=n, RUN=regexp)
# make soak        minutes of everything at once with the block cache, every byte compared (MINUTES=n, SOAKFLAGS=-seed=n)

VMS ?= 20
CONTAINERS ?= 20
KEEP ?=
DEMOFLAGS ?=

GO ?= go
# Root's part of the work, with what it must know of the caller.
AS_ROOT := $(if $(filter 0,$(shell id -u)),env,sudo env "HAYLOFT_CACHE=$(HAYLOFT_CACHE)" "CI=$(CI)")

.PHONY: all build demo demo-down check format vet staticcheck unit generate-check test lab-tests guest clean crash shake soak

all: build

build:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/hayloft ./cmd/hayloft

bin/%: FORCE
	@mkdir -p $(@D)
	@CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./lab/$*
FORCE:

demo:
	@lab/packages.sh demo
	@echo "==> build hayloft"
	@$(MAKE) --no-print-directory build bin/demo
	@$(AS_ROOT) bin/demo -hayloft bin/hayloft -vms $(VMS) -containers $(CONTAINERS) $(if $(filter-out 0,$(KEEP)),-keep) $(DEMOFLAGS)

demo-down: bin/demo
	@$(AS_ROOT) bin/demo -down

check: format vet staticcheck unit

format:
	@echo "==> gofmt"
	@files=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$files" ]; then echo "not formatted (gofmt -w):"; echo "$$files"; exit 1; fi

vet:
	@echo "==> go vet"
	@$(GO) vet ./...

staticcheck:
	@echo "==> staticcheck"
	@$(GO) tool staticcheck ./...

unit:
	@echo "==> unit tests"
	@HAYLOFT_LAB= $(GO) test ./...

# What protoc makes of wire/fleet.proto is what is committed.
generate-check:
	@echo "==> generated code is fresh"
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && cp wire/*.pb.go "$$dir" && $(GO) generate ./wire && \
		for file in "$$dir"/*.pb.go; do cmp "$$file" "wire/$${file##*/}" || { echo "stale: commit what go generate ./wire made"; exit 1; }; done

test:
	@lab/packages.sh test
	@$(MAKE) --no-print-directory format vet staticcheck generate-check lab-tests

# Unit and integration tests with the race detector; the tests run as root, the compiler does not. The kernel guest takes longest
# and begins first. Packages with
# much to do are silent for minutes, so what runs is said meanwhile.
lab-tests: bin/golden/build
	@echo "==> golden images"
	@$(AS_ROOT) bin/golden/build >/dev/null
	@echo "==> all tests, with the race detector, QEMU and LXC"
	@(while sleep 30; do ps -eo etimes=,comm= | awk '$$2 ~ /\.test$$/ {printf "    ... %s since %d s\n", $$2, $$1}'; done) & ticker=$$!; \
		trap 'kill $$ticker' EXIT; trap 'exit 1' INT TERM; \
		$(GO) test -race -vet=off -p 3 -timeout 18m -exec '$(AS_ROOT) HAYLOFT_LAB=1' ./lab/guest ./...

COUNT ?= 5
RUN ?= .
shake: bin/shake
	@$(if $(PKG),,echo "make shake: PKG=package is needed"; exit 2)
	@$(GO) test -race -vet=off -p 1 -count=$(COUNT) -run '$(RUN)' -timeout 60m -exec '$(AS_ROOT) HAYLOFT_LAB=1 $(CURDIR)/bin/shake' $(PKG)

guest:
	@lab/packages.sh test
	HAYLOFT_GUEST_FULL=1 $(GO) test -count=1 -v -timeout 90m -exec '$(AS_ROOT) HAYLOFT_LAB=1 HAYLOFT_GUEST_FULL=1' -run TestGuestPackages ./lab/guest
	$(GO) test -count=1 -v -timeout 60m -exec '$(AS_ROOT) HAYLOFT_LAB=1 HAYLOFT_GUEST_FULL=1' -run TestStorageServerClones ./disk/repository/iscsi

crash:
	HAYLOFT_CRASH_POINTS=$(or $(POINTS),1000000) $(GO) test -count=1 -timeout 24h -run TestCrashPoints -v ./disk/cache/proof

soak: build bin/soak
	@$(AS_ROOT) bin/soak -hayloft bin/hayloft -minutes $(or $(MINUTES),5) $(SOAKFLAGS)

clean:
	rm -rf bin
