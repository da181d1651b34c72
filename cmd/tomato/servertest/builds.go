package servertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// builds are the programs that tests have built. Each is built once in a process.
var builds = struct {
	sync.Mutex
	dir string
	of  map[string]string // path by name
}{of: map[string]string{}}

// Build builds tomato from the module in a directory with these flags of go build,
// without the race detector, and returns the path of the program. A second call with the
// same name returns the same program.
func Build(t testing.TB, name, module string, flags ...string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if path, ok := builds.of[name]; ok {
		return path
	}
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "tomato-builds")
		if err != nil {
			t.Fatal(err)
		}
		builds.dir = dir
	}
	path := filepath.Join(builds.dir, name)
	args := append(append([]string{"go", "build", "-p", "1", "-buildvcs=false", "-o", path}, flags...), "./cmd/tomato")
	if nice, err := exec.LookPath("nice"); err == nil { // servers of other tests have deadlines
		args = append([]string{nice}, args...)
	}
	build := exec.Command(args[0], args[1:]...)
	build.Dir = module
	start := time.Now()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	t.Logf("%s was built in %v", name, time.Since(start).Round(time.Millisecond))
	builds.of[name] = path
	return path
}

// RemoveBuilds removes the programs. A TestMain calls it after the tests.
func RemoveBuilds() {
	builds.Lock()
	defer builds.Unlock()
	if builds.dir != "" {
		_ = os.RemoveAll(builds.dir)
	}
}
