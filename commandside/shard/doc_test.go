package shard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The package comment lists every file of the package, and no other.
func TestThePackageCommentListsTheFiles(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, word := range strings.Fields(string(doc)) {
		if filepath.Ext(word) == ".go" {
			listed[word] = true
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f == "doc.go" || strings.HasSuffix(f, "_test.go") {
			continue
		}
		if !listed[f] {
			t.Errorf("doc.go does not list %s", f)
		}
		delete(listed, f)
	}
	for f := range listed {
		t.Errorf("doc.go lists %s, which does not exist", f)
	}
}
