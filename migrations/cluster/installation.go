package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrAbsent means that Postgres or PostGIS is not installed. The error's text says
// what to install.
var ErrAbsent = errors.New("Postgres with PostGIS is not installed")

// install is the advice in the errors' texts.
const install = "install it (Debian and Ubuntu: apt-get install postgresql postgresql-postgis; or run .ci/setup), or set DATABASE_URL to a database of your own"

// binaries returns the folder of initdb and postgres. If data exists, it is the
// folder of the version that created data. Otherwise it is that of the newest version
// with PostGIS, or of the newest version if none has PostGIS.
func binaries(data string) (string, error) {
	version := ""
	if b, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil {
		version = strings.TrimSpace(string(b))
	}
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // where Debian installs them
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(out)))
	}
	if p, err := exec.LookPath("postgres"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			candidates = append(candidates, filepath.Dir(p))
		}
	}
	best, bestMajor, bestPostGIS := "", 0, false
	for _, bin := range candidates {
		major, err := majorVersion(bin)
		if err != nil || version != "" && version != strconv.Itoa(major) {
			continue
		}
		postgis := hasPostGIS(bin)
		if best == "" || postgis && !bestPostGIS || postgis == bestPostGIS && major > bestMajor {
			best, bestMajor, bestPostGIS = bin, major, postgis
		}
	}
	switch {
	case best != "":
		return best, nil // prepare checks again with Postgres itself that it has PostGIS
	case version != "":
		return "", fmt.Errorf("%[1]w: Postgres %[3]s created the data in %[2]s and is not installed: install postgresql-%[3]s-postgis-3, or remove the data, which is then rebuilt from the event log", ErrAbsent, data, version)
	}
	return "", fmt.Errorf("%w: %s", ErrAbsent, install)
}

func majorVersion(bin string) (int, error) {
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return 0, err
	}
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output() // postgres (PostgreSQL) 15.13 (Debian …)
	if err != nil {
		return 0, err
	}
	var major int
	_, err = fmt.Sscanf(string(out), "postgres (PostgreSQL) %d", &major)
	return major, err
}

func hasPostGIS(bin string) bool {
	out, err := exec.Command(filepath.Join(bin, "pg_config"), "--sharedir").Output()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(strings.TrimSpace(string(out)), "extension", "postgis.control"))
	return err == nil
}
