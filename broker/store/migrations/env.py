"""How Alembic runs the revisions of one database file; started by `broker.store.database` and by nothing else.

The connection comes from there, so there is no ini file and no second way to open a database. SQLite can undo DDL,
and the connection begins its transactions explicitly: all revisions are applied, or none.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
