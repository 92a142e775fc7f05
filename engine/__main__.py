from evalengine.cli import main

raise SystemExit(main())
