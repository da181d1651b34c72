package main_test

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackageCommentsListAllFiles: a package comment that lists the files in reading
// order names every file with code. A new file is easily forgotten there.
func TestPackageCommentsListAllFiles(t *testing.T) {
	t.Parallel()
	listed := 0
	for _, p := range modulePackages(t) {
		var comment string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			comment += f.Doc.Text()
		}
		if !strings.Contains(comment, "reading order") {
			continue
		}
		listed++
		for _, name := range p.GoFiles {
			if name != "doc.go" && !strings.Contains(comment, name) {
				t.Errorf("the package comment of %s does not name %s", p.ImportPath, name)
			}
		}
	}
	if listed < 5 {
		t.Errorf("only %d package comments list their files", listed)
	}
}
