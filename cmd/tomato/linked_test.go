package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestLinkedModulesAreReviewed: docs/linked.txt has the modules that are linked into
// the binary, without versions. What a new dependency brings in is seen in a review.
func TestLinkedModulesAreReviewed(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := strings.Fields(string(out))
	slices.Sort(linked)
	linked = slices.Compact(linked)
	if len(linked) < 10 {
		t.Fatalf("go list found only %v", linked)
	}
	reviewed := strings.Fields(read(t, "docs/linked.txt"))
	if slices.Equal(linked, reviewed) {
		return
	}
	for _, m := range linked {
		if !slices.Contains(reviewed, m) {
			t.Errorf("%s is linked into the binary, and docs/linked.txt does not have it: add its reason to docs/dependencies.md", m)
		}
	}
	for _, m := range reviewed {
		if !slices.Contains(linked, m) {
			t.Errorf("docs/linked.txt has %s, which is not linked into the binary", m)
		}
	}
	t.Error("make docs/linked.txt again: go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}' ./cmd/tomato | sed '/^$/d' | LC_ALL=C sort -u > docs/linked.txt")
}
