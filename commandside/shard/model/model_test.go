// Package model checks the write side's protocol exhaustively, within bounds,
// with the model checker Spin. README.md says what is modelled.
package model_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Bounds small enough for every run of the tests. longVariable asks for larger ones.
var (
	oneLog       = []string{"-DLOGS=1", "-DSESSIONS=2", "-DAPPENDS=2", "-DMAXLOG=6", "-DERRORS=1", "-DRESENDS=1", "-DMAXFENCE=5", "-DEXPIRIES=1"}
	oneLogThree  = []string{"-DLOGS=1", "-DSESSIONS=3", "-DAPPENDS=1", "-DMAXLOG=5", "-DERRORS=1", "-DRESENDS=1", "-DMAXFENCE=4", "-DEXPIRIES=1"}
	twoLogs      = []string{"-DLOGS=2", "-DSESSIONS=2", "-DAPPENDS=2", "-DMAXLOG=5", "-DERRORS=1", "-DRESENDS=0", "-DMAXFENCE=4", "-DEXPIRIES=0"}
	threeClaims  = []string{"-DLOGS=2", "-DSESSIONS=3", "-DAPPENDS=1", "-DMAXLOG=4", "-DERRORS=0", "-DRESENDS=0", "-DMAXFENCE=4", "-DEXPIRIES=0"}
	oneLogLong   = []string{"-DLOGS=1", "-DSESSIONS=3", "-DAPPENDS=2", "-DMAXLOG=6", "-DERRORS=1", "-DRESENDS=1", "-DMAXFENCE=5", "-DEXPIRIES=1"}
	twoLogsLong  = []string{"-DLOGS=2", "-DSESSIONS=2", "-DAPPENDS=2", "-DMAXLOG=5", "-DERRORS=1", "-DRESENDS=1", "-DMAXFENCE=5", "-DEXPIRIES=1"}
	threeFaults  = []string{"-DFAULTS=3"}
	safety       = checker{file: "shard.pml", gcc: []string{"-DSAFETY", "-DNOREDUCE", "-DCOLLAPSE"}}
	liveness     = checker{file: "takeover.pml", gcc: []string{"-DNFAIR=3"}, pan: []string{"-a", "-f"}}
	memoryMiB    = cmp.Or(os.Getenv("TOMATO_MODEL_MIB"), "1024")
	depth        = "-m200000"
	statesStored = regexp.MustCompile(`(?m)^\s*(\d+) states, stored`)
	errorsFound  = regexp.MustCompile(`errors: (\d+)`)
	failedAt     = regexp.MustCompile(`shard\.pml:(\d+), Error: assertion violated`)
	incomplete   = regexp.MustCompile(`max search depth too small|out of memory|memory limit|[Ss]earch not completed`)
)

// longVariable, if it is set, lets TestProtocolHoldsInLargerBounds run, with the memory of
// TOMATO_MODEL_MIB.
const longVariable = "TOMATO_MODEL_LONG"

// A checker turns a model into a program that visits all of its states.
type checker struct {
	file     string
	gcc, pan []string
}

// The properties. Those of shard.pml are the comments after its assertions.
const (
	readersAgree  = "readers agree"
	ownerAgrees   = "owner and readers agree"
	versions      = "versions of valid events are 1, 2, 3, ..."
	allValid      = "everything acknowledged is valid"
	noneStale     = "no refusal is stale"
	refusalsValid = "refusals rest on valid events"
	onValid       = "events are decided on valid events"
	onPresent     = "events are decided on the present state of the other log"
	serves        = "an assigned shard serves again after the last fault"
	assertionText = "assertion violated"
	cycleText     = "acceptance cycle"
)

func TestProtocolHolds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		checker
		bounds []string
	}{
		{"one log", safety, oneLog},
		{"one log, three claims", safety, oneLogThree},
		{"two logs", safety, twoLogs},
		{"two logs, three claims", safety, threeClaims},
		{"take-overs", liveness, threeFaults},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.holds(t, c.bounds)
		})
	}
}

// The same in larger bounds, which takes hours and gigabytes.
func TestProtocolHoldsInLargerBounds(t *testing.T) {
	if os.Getenv(longVariable) == "" {
		t.Skipf("%s is not set", longVariable)
	}
	for name, bounds := range map[string][]string{"one log": oneLogLong, "two logs": twoLogsLong} {
		t.Run(name, func(t *testing.T) { safety.holds(t, bounds) })
	}
}

// holds checks that all properties hold within the bounds.
func (c checker) holds(t *testing.T, bounds []string) {
	t.Helper()
	dir, out := c.run(t, "-O1", bounds)
	if strings.Contains(out, assertionText) || strings.Contains(out, cycleText) {
		t.Fatalf("does not hold:\n%s\n%s", out, c.replay(t, dir, bounds))
	}
	if n := errorsFound.FindStringSubmatch(out); n == nil || n[1] != "0" || incomplete.MatchString(out) {
		t.Fatalf("not exhaustive:\n%s", out)
	}
	t.Logf("holds over %s states", statesStored.FindStringSubmatch(out)[1])
}

// If any one of the rules is left out, a property fails. This shows that the model can
// find such an error, and that each rule is needed.
func TestEveryRuleIsNeeded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rule string
		checker
		bounds []string
		breaks []string // properties that the rule protects; one of them must fail
	}{
		{"TERM", safety, oneLog, []string{readersAgree, versions}},
		{"SEQ", safety, oneLog, []string{versions}},
		{"VALIDPOSITION", safety, oneLog, []string{readersAgree}},
		{"CONTIGUITY", safety, oneLog, []string{allValid}},
		{"BETWEEN", safety, oneLog, []string{allValid}},
		{"CLAIMFIRST", safety, oneLog, []string{allValid, versions}},
		{"CLAIMID", safety, oneLog, []string{allValid}},
		{"CHECK", safety, oneLog, []string{noneStale}},
		{"HIGHER", safety, oneLog, []string{noneStale}},
		{"RETENTION", safety, oneLog, []string{noneStale}},
		{"FENCEFIRST", safety, oneLog, []string{noneStale}},
		{"REFENCE", safety, oneLogThree, []string{noneStale}},
		{"ACKED", safety, oneLog, []string{refusalsValid}},
		{"READFIRST", safety, twoLogs, []string{onPresent}},
		{"BOTHCLAIMS", safety, twoLogs, []string{onPresent}},
		{"ACKEDPREMISE", safety, twoLogs, []string{onValid}},
		{"CONFIRM", liveness, threeFaults, []string{serves}},
		{"REOPEN", liveness, threeFaults, []string{serves}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			t.Parallel()
			defines := append(slices.Clone(c.bounds), "-DNO_"+c.rule)
			dir, out := c.run(t, "-O0", defines)
			var broken string
			switch {
			case strings.Contains(out, cycleText):
				broken = serves
			case strings.Contains(out, assertionText):
				broken = property(t, c.replay(t, dir, defines))
			default:
				t.Fatalf("holds without the rule:\n%s", out)
			}
			if !slices.Contains(c.breaks, broken) {
				t.Fatalf("broken: %q, want one of %q\n%s", broken, c.breaks, c.replay(t, dir, defines))
			}
			t.Logf("broken without it, within %s states: %s", statesStored.FindStringSubmatch(out)[1], broken)
		})
	}
}

// run checks the model under these defines in a directory of its own, which
// then holds the counterexample if there is one, and returns the report.
// optimize is gcc's option: -O1 pays if the search takes longer than compiling.
func (c checker) run(t *testing.T, optimize string, defines []string) (dir, report string) {
	t.Helper()
	for _, tool := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("TOMATO_REQUIRE_MODEL") == "1" {
				t.Fatal(err)
			}
			t.Skipf("the model is not checked: %v", err)
		}
	}
	dir = t.TempDir()
	source, err := os.ReadFile(c.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, c.file), source, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "spin", slices.Concat([]string{"-a"}, defines, []string{c.file}))
	command(t, dir, "gcc", slices.Concat([]string{optimize, "-w", "-DMEMLIM=" + memoryMiB}, c.gcc, []string{"-o", "pan", "pan.c"}))
	return dir, command(t, dir, "./pan", append([]string{depth}, c.pan...))
}

// replay returns the steps of the counterexample as text.
func (c checker) replay(t *testing.T, dir string, defines []string) string {
	t.Helper()
	out := command(t, dir, "spin", slices.Concat([]string{"-t", "-T"}, defines, []string{c.file}))
	told, _, _ := strings.Cut(out, "#processes")
	return told
}

// property returns the name of the property that fails in the replayed counterexample.
func property(t *testing.T, replayed string) string {
	t.Helper()
	m := failedAt.FindStringSubmatch(replayed)
	if m == nil {
		t.Fatalf("no assertion fails in\n%s", replayed)
	}
	source, err := os.ReadFile(safety.file)
	if err != nil {
		t.Fatal(err)
	}
	line, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	_, comment, _ := strings.Cut(strings.Split(string(source), "\n")[line-1], "/* ")
	name, _, ok := strings.Cut(comment, " */")
	if !ok {
		t.Fatalf("%s:%d has no comment with the name of a property", safety.file, line)
	}
	return name
}

func command(t *testing.T, dir, name string, args []string) string {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), name, args...)
	if deadline, ok := t.Deadline(); ok {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		cmd = exec.CommandContext(ctx, name, args...)
	}
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatal(fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out))
	}
	return string(out)
}
