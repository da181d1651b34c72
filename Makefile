# make run    installs what is missing, builds, serves in the foreground
# make test   installs what is missing, then all tests, those on Apache Kafka and in Chromium included
# make lint   gofmt, go vet, staticcheck (its policy: staticcheck.conf)
# make schemathesis  holds a running serve against its own /openapi.json
# make check  lint, and test-strict: all tests, which shows each one that was skipped,
#             and fails if one was
# .ci/run     make lint, make test-strict and make schemathesis, as the checks do it

BUILD := go build -o bin/tomato ./cmd/tomato
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Two test binaries at a time: each may have a broker, a Postgres and a Kafka
# of its own beside it.
TESTFLAGS ?= -race -p 2 -timeout 30m

.PHONY: run build test test-strict check schemathesis lint clean

run:
	@if .ci/setup run; then $(BUILD) && exec bin/tomato serve; \
	elif docker info >/dev/null 2>&1; then exec .ci/run-in-docker; \
	else echo "There is neither PostGIS nor a Docker engine to run it in." >&2; exit 1; fi

build:
	$(BUILD)

# -count=1: what a test meets on the machine is no input that the cache knows of.
test:
	.ci/setup test
	$(REQUIRE) go test $(TESTFLAGS) -count=1 ./...

# What a test cannot do without, it fails without instead of being skipped.
REQUIRE := TOMATO_REQUIRE_KAFKA=1 TOMATO_REQUIRE_POSTGIS=1 TOMATO_REQUIRE_MODEL=1 TOMATO_REQUIRE_CHROMIUM=1

check: lint test-strict

test-strict:
	.ci/setup test
	bash -o pipefail -c '$(REQUIRE) go test -json $(TESTFLAGS) -count=1 ./... | .ci/skips'

schemathesis:
	.ci/setup test
	.ci/schemathesis

lint:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

clean:
	rm -rf bin
