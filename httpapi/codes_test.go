package httpapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// internalCodes are the refusals that no answer has: commandside makes another problem of
// them, or only policies get them.
var internalCodes = []string{"version_mismatch"}

// usedCodes reads from the sources which codes answers can have: the constants of type
// domain.Code, the arguments of NewProblem and Unavailable, the codes that notFoundAs of
// commandside and FromError make of a noun, and the field Code of literals.
func usedCodes(t *testing.T) map[string]string {
	t.Helper()
	used := map[string]string{}
	text := func(e ast.Expr) string {
		lit, ok := e.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return ""
		}
		s, _ := strconv.Unquote(lit.Value)
		return s
	}
	// Functions whose argument is a code, or a noun.
	codes := map[string]int{"NewProblem": 1, "Unavailable": 0}
	nouns := map[string]int{"notFoundAs": 0, "notFound": 0, "FromError": 0}
	nounMaps := map[string]bool{"nouns": true}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "cmd/tomato/bench") {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		add := func(code string, at ast.Node) {
			if code != "" {
				used[code] = fset.Position(at.Pos()).String()
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				name := ""
				switch fun := n.Fun.(type) {
				case *ast.Ident:
					name = fun.Name
				case *ast.SelectorExpr:
					name = fun.Sel.Name
				}
				if i, ok := codes[name]; ok && len(n.Args) > i {
					add(text(n.Args[i]), n)
				}
				if i, ok := nouns[name]; ok && len(n.Args) > i {
					if noun := text(n.Args[i]); noun != "" && noun != "resource" && noun != "feed" {
						add(noun+"_not_found", n)
					}
				}
			case *ast.ValueSpec:
				kind := ""
				switch typ := n.Type.(type) {
				case *ast.Ident:
					kind = typ.Name
				case *ast.SelectorExpr:
					kind = typ.Sel.Name
				}
				for i, v := range n.Values {
					if kind == "Code" {
						add(text(v), n)
					}
					if lit, ok := v.(*ast.CompositeLit); ok && nounMaps[n.Names[i].Name] {
						for _, e := range lit.Elts {
							if kv, ok := e.(*ast.KeyValueExpr); ok {
								add(text(kv.Value)+"_not_found", n)
							}
						}
					}
				}
			case *ast.CompositeLit:
				if typ, ok := n.Type.(*ast.Ident); ok && typ.Name == "rejectedPosition" && len(n.Elts) == 2 {
					add(text(n.Elts[1]), n)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range internalCodes {
		if used[code] == "" {
			t.Errorf("%s is not in use any more", code)
		}
		delete(used, code)
	}
	return used
}

// Every code that an answer can have has a page, and every page is of such a code.
func TestEveryCodeHasItsPage(t *testing.T) {
	t.Parallel()
	used := usedCodes(t)
	if len(used) < 40 {
		t.Errorf("only %d codes were found: %v", len(used), used)
	}
	a := testAPI(t, io.Discard)
	for code, at := range used {
		path := NewProblem(404, code, "").Type
		if res, _, body := do(t, a, call{method: "GET", path: path}); res.StatusCode != 200 || !strings.Contains(body, "("+code+")") {
			t.Errorf("%s (%s): %s is %d", code, at, path, res.StatusCode)
		}
	}
	for code := range descriptions {
		if used[code] == "" {
			t.Errorf("nothing answers with %s", code)
		}
	}
	if res, _, _ := do(t, a, call{method: "GET", path: "/problems/nothing-not-found"}); res.StatusCode != 404 {
		t.Error("a page of a noun that there is not")
	}
}
