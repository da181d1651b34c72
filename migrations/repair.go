package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
)

// TryNext applies the first pending file of the schema tomato in a transaction, and rolls
// it back. It returns the file's name, and why the file cannot be applied; nil if it can.
// So it tells whether anything of a file that is marked as incomplete is there. It waits
// at most wait for each lock, and holds those of the file's statements meanwhile.
func TryNext(ctx context.Context, databaseURL string, wait time.Duration) (file string, refused, err error) {
	err = within(ctx, databaseURL, coreSchema, wait, func(conn *pgx.Conn) error {
		s, err := CoreSchema(ctx, conn)
		if err != nil || len(s.Pending) == 0 {
			return err
		}
		file = s.Pending[0]
		sql, err := fs.ReadFile(files, "core/"+file+".up.sql")
		if err != nil {
			return err
		}
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		if _, refused = tx.Exec(ctx, string(sql)); lockTimedOut(refused) {
			err = refused // says nothing of the file
		}
		return errors.Join(err, tx.Rollback(ctx))
	})
	return file, refused, err
}

// Assume writes into the schema tomato, without applying anything, that the files up to
// version have been applied in full and no others. 0 means that none has. It fails if
// version is another number than that of a file.
func Assume(ctx context.Context, databaseURL string, version int, wait time.Duration) error {
	return within(ctx, databaseURL, coreSchema, wait, func(conn *pgx.Conn) error {
		if err := prepare(ctx, conn, coreSchema); err != nil {
			return err
		}
		src, err := iofs.New(files, "core")
		if err != nil {
			return err
		}
		defer src.Close()
		if version != 0 {
			r, _, err := src.ReadUp(uint(version))
			if err != nil {
				return fmt.Errorf("this build has no file of version %d", version)
			}
			if err := r.(io.Closer).Close(); err != nil {
				return err
			}
		}
		d, err := newDriver(ctx, conn, src, coreSchema, wait)
		if err != nil {
			return err
		}
		if err := d.Lock(); err != nil {
			return err
		}
		err = d.SetVersion(version, true)
		if err == nil {
			if version == 0 {
				version = -1 // database.NilVersion
			}
			err = d.SetVersion(version, false)
		}
		return errors.Join(err, d.Unlock())
	})
}
