package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// goPackage is what the go command says of a package.
type goPackage struct {
	ImportPath string
	Name       string
	Imports    []string
}

func modulePackages(t *testing.T) (packages []goPackage) {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Imports", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 5 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	return packages
}

// mayImport says which parts of the module the packages of a part may import,
// beside their own: imports point one way, and the three sides know nothing of
// one another. cmd joins them, and may import all.
var mayImport = map[string][]string{
	"domain":      {},
	"eventlog":    {"domain"},
	"httpapi":     {"domain", "eventlog"},
	"migrations":  {"domain", "eventlog"},
	"commandside": {"domain", "eventlog", "httpapi", "migrations"},
	"projections": {"domain", "eventlog", "httpapi", "migrations"},
	"queryside":   {"domain", "eventlog", "httpapi", "migrations"},
}

const module = "tomato/"

// part is the top folder of a package of the module; ok is false for others.
func part(importPath string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(importPath, module)
	name, _, _ = strings.Cut(rest, "/")
	return name, ok
}

// TestImportsPointOneWay looks at what is shipped; a test may import more.
func TestImportsPointOneWay(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		from, ok := part(p.ImportPath)
		if !ok {
			t.Errorf("package %s is outside %s", p.ImportPath, module)
			continue
		}
		if from == "cmd" {
			continue
		}
		allowed, known := mayImport[from]
		if !known {
			t.Errorf("package %s: no rule says what %s may import", p.ImportPath, from)
			continue
		}
		for _, i := range p.Imports {
			to, ours := part(i)
			if ours && to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: %s may import only %v", p.ImportPath, i, from, allowed)
			}
			first, _, _ := strings.Cut(i, "/")
			if from == "domain" && !ours && strings.Contains(first, ".") {
				t.Errorf("%s imports %s: the domain is standard library only", p.ImportPath, i)
			}
		}
	}
}

// TestTestLibrariesStayOut: what is shipped imports neither testing nor a
// package made for tests, whose names end in "test".
func TestTestLibrariesStayOut(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		if strings.HasSuffix(p.Name, "test") {
			continue
		}
		for _, i := range p.Imports {
			if i == "testing" || strings.HasPrefix(i, "testing/") || strings.HasSuffix(path.Base(i), "test") {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

// TestPackageNames: a package is named after what it does.
func TestPackageNames(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		for _, name := range append(strings.Split(p.ImportPath, "/"), p.Name) {
			switch strings.TrimSuffix(name, "s") {
			case "util", "common", "helper", "manager":
				t.Errorf("%s is named after nothing that it does", p.ImportPath)
			}
		}
	}
}
