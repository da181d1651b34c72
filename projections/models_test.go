package projections

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestTheSharedFilesNameNoReadModel: a read model is declared in one file, so that
// adding one changes no other file of this package. Only the queries that other
// parts ask for (search.go, feed.go) know particular read models.
func TestTheSharedFilesNameNoReadModel(t *testing.T) {
	t.Parallel()
	own := []string{"rider_positions.go", "riders_upkeep.go", "search.go", "feed.go"} // beside the files that register a read model
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	registered := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || slices.Contains(own, name) {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(src), "\nvar _ = register(") {
			registered++
			continue
		}
		for _, i := range f.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); strings.HasPrefix(path, "tomato/domain/") {
				t.Errorf("%s imports %s", name, path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				if slices.Contains(Models(), strings.ToLower(n.Name)) {
					t.Errorf("%s: %s is a read model", fset.Position(n.Pos()), n.Name)
				}
			case *ast.BasicLit:
				for _, column := range []string{"order_id", "rider_id", "free_riders", "rider_positions", "order_events"} {
					if strings.Contains(n.Value, column) {
						t.Errorf("%s: %s belongs to one read model", fset.Position(n.Pos()), column)
					}
				}
			}
			return true
		})
	}
	if registered != len(Models()) {
		t.Errorf("%d files register %v", registered, Models())
	}
}

// TestEveryReadModelHasAFoldVersion: TestFoldVersions in domain/domaintest, which makes
// the versions, has a list of the read models of its own.
func TestEveryReadModelHasAFoldVersion(t *testing.T) {
	t.Parallel()
	for _, m := range Models() {
		if FoldVersion(m) == "" {
			t.Errorf("%s has no version of its fold: add it to readModels in domain/domaintest/foldversion_test.go", m)
		}
	}
	for m := range foldVersions {
		if !slices.Contains(Models(), m) {
			t.Errorf("there is no read model %s", m)
		}
	}
}
